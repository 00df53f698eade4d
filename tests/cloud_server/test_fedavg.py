"""Federated averaging over the protocol: runs, what crosses, and what a lost vehicle changes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from federated_fixtures import ONE_STEP, SGD, FederatedFleet
from fleet_fixtures import CARS, TinyFleet, World
from supervision import Supervisor

from cloud_server.config import PatienceConfig
from edge_client.host import HostConfig
from edge_client.local.network import require_torch
from evaluation.predictions import prediction_name
from protocol.codec.weights import WeightTensor, unpack
from protocol.errors import Mistake
from protocol.local_model import LocalModel
from protocol.messages import Down, FetchWeights, Finish, Status, Turn, Up, Update, Weights
from protocol.plans.federated import FederatedPlan
from protocol.session.memory import MemoryBus
from protocol.session.parts import read_word, split
from protocol.session.reassembly import Reassembler
from protocol.session.topics import UP, parse, topic


@dataclass
class BusLog:
    """Every whole message that crossed a bus, reassembled from its parts."""

    messages: list[tuple[str, Up | Down | Status]] = field(default_factory=list)
    by_vehicle_bytes: dict[str, list[int]] = field(default_factory=dict)
    """By vehicle: the bus's own [sent, received] counts until the run was over."""
    _parts: Reassembler = field(
        default_factory=lambda: Reassembler(max_message_bytes=1 << 26, max_pending=64)
    )

    def __call__(self, topic_name: str, payload: bytes) -> Up | Down | Status | None:
        address = parse(topic_name)
        if read_word(payload) is not None:
            return None
        whole = self._parts.feed(topic_name, payload)
        if whole is None:
            return None
        message = msgspec.msgpack.decode(whole, type=address.channel.message_type)
        self.messages.append((address.vehicle, message))
        return message


@dataclass
class RecordedRun:
    fleet: FederatedFleet
    log: BusLog


@pytest.fixture(scope="module")
def silo(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> RecordedRun:
    """Two rounds with statistics that stay on the vehicles, and every message of it."""
    fleet = FederatedFleet(
        tiny_world, tmp_path_factory.mktemp("silo"), federated=FederatedPlan(statistics="local")
    )
    log, bus = BusLog(), MemoryBus()
    supervisor = Supervisor(fleet, bus)

    def record(topic_name: str, payload: bytes, qos: int) -> None:
        if isinstance(log(topic_name, payload), Finish) and not log.by_vehicle_bytes:
            for car in CARS:
                traffic = supervisor.traffic(car)
                log.by_vehicle_bytes[car] = [traffic.sent_bytes, traffic.received_bytes]

    bus.record(record)
    supervisor.run()
    return RecordedRun(fleet, log)


# The average ----------------------------------------------------------------------------------------------


def test_average_of_a_run_is_that_of_its_updates(silo: RecordedRun) -> None:
    """The second round's weights, from the bus; the vehicles have six frames each."""
    updates = [message for _, message in silo.log.messages if isinstance(message, Update)]
    last = {update.vehicle: update for update in updates}
    shapes = {tensor.name: tensor.shape for tensor in last["car-1"].tensors}
    weights = {car: unpack(update.tensors, shapes) for car, update in last.items()}
    total = sum(update.samples for update in last.values())
    for name, array in silo.fleet.weights().items():
        expected = sum(weights[car][name].astype(np.float64) * last[car].samples for car in CARS) / total
        np.testing.assert_allclose(array, expected, rtol=0, atol=1e-7)


# Rounds ---------------------------------------------------------------------------------------------------


def test_training_ends_when_the_miou_has_converged(tiny_world: World, tmp_path: Path) -> None:
    """With a rate of next to nothing no round gains: after one without gain only the evaluation is left."""
    fleet = FederatedFleet(
        tiny_world,
        tmp_path,
        rounds=6,
        first_order=msgspec.structs.replace(ONE_STEP, rate=1e-12),
        federated=FederatedPlan(optimizer="sgd", statistics="frozen", patience_rounds=1),
    )
    Supervisor(fleet).run()
    assert [event["stage"] for event in fleet.events("committed")] == [0, 1, 2, 7]
    assert fleet.events("converged")[0]["round"] == 2


# What crosses ---------------------------------------------------------------------------------------------


def test_only_weights_counts_and_control_cross(silo: RecordedRun) -> None:
    said = {type(message).__name__ for _, message in silo.log.messages}
    assert said - {"Recall"} == {  # which a slow machine may add
        "Hello", "Welcome", "Turn", "FetchWeights", "Weights", "Update", "SplitScores", "TurnDone", "Ack",
        "Finish", "Status", "Happened", "Past",
    }  # fmt: skip


def test_silobn_statistics_never_cross(silo: RecordedRun) -> None:
    """By name and, for what was kept on the vehicles in the end, by value."""
    spec = LocalModel.load(silo.fleet.local_model).spec
    sent = [
        tensor
        for _, message in silo.log.messages
        if isinstance(message, Update | Weights)
        for tensor in message.tensors
    ]
    assert {tensor.name for tensor in sent} == set(spec.shapes(statistics=False))
    assert len(spec.statistic_names) > 10
    crossed = b"".join(tensor.data for tensor in sent)
    for car in CARS:
        newest = max(silo.fleet.state_folder(car).glob("turn-*.state"))
        turn_id = int(newest.stem.removeprefix("turn-"))
        kept = silo.fleet.states(car).load(turn_id).optimizer
        assert {name.removeprefix("statistic/") for name in kept} == set(spec.statistic_names)
        assert all(array.astype("<f4").tobytes() not in crossed for array in kept.values())


@pytest.mark.parametrize("car", CARS)
def test_byte_counts_equal_what_the_bus_carried(car: str, silo: RecordedRun) -> None:
    entry = silo.fleet.result()["vehicles"][car]
    sent, received = silo.log.by_vehicle_bytes[car]
    assert entry["uplink_bytes"] == pytest.approx(sent, rel=0.002)
    assert entry["downlink_bytes"] == pytest.approx(received, rel=0.002)
    weights = sum(
        len(tensor.data)
        for vehicle, message in silo.log.messages
        if vehicle == car and isinstance(message, Update)
        for tensor in message.tensors
    )
    assert weights < entry["uplink_bytes_by_type"]["update"] < 1.02 * weights


def test_vehicle_writes_its_own_predictions(silo: RecordedRun) -> None:
    for car in CARS:
        files = {path.name for path in (silo.fleet.run_folder / "predictions" / car).iterdir()}
        assert files == {prediction_name(key) for key in silo.fleet.frames[car]["test"]}


def test_result_counts_frames_and_learns(silo: RecordedRun) -> None:
    result = silo.fleet.result()
    frames = sum(len(silo.fleet.frames[car]["train"]) for car in CARS)
    assert result["frames_seen"] == frames * 2 * silo.fleet.config.first_order.epochs
    assert result["mean_local_miou"] > result["initial_local_miou"]


def test_replay_is_as_many_passes_more(tiny_world: World, tmp_path: Path) -> None:
    fleets = []
    for name, changes in {"replay": {"replay_steps": 2}, "passes": {"epochs": 3}}.items():
        first = msgspec.structs.replace(ONE_STEP, **changes)
        fleets.append(FederatedFleet(tiny_world, tmp_path / name, rounds=1, first_order=first))
        Supervisor(fleets[-1]).run()
    assert fleets[0].fingerprint() == fleets[1].fingerprint()
    frames = sum(len(fleets[0].frames[car]["train"]) for car in CARS)
    assert [fleet.result()["frames_seen"] for fleet in fleets] == [frames * 3] * 2


# Weights that don't fit -----------------------------------------------------------------------------------


def test_poisoned_updates_are_rejected_counted_and_change_nothing(
    silo: RecordedRun, tiny_world: World, tmp_path: Path
) -> None:
    """Somebody sends NaN, a wrong shape, a wrong name and a wrong count in a vehicle's name in each turn."""
    fleet = FederatedFleet(tiny_world, tmp_path, federated=FederatedPlan(statistics="local"))
    bus, log = MemoryBus(), BusLog()
    ghost = bus.client("ghost")
    ghost.connect(0)
    forged = 0

    def poison(topic_name: str, payload: bytes, qos: int) -> None:
        nonlocal forged
        if not topic_name.endswith(("/up", "/down")) or topic_name in sending:
            return
        message = log(topic_name, payload)
        if not isinstance(message, Update) or message.vehicle != "car-1" or message.step >= 1000:
            return
        for number, (tensors, samples) in enumerate(_poisons(message)):
            false = msgspec.structs.replace(message, step=1000 + number, tensors=tensors, samples=samples)
            sending.add(topic_name)
            for part in split(msgspec.msgpack.encode(false), 1 << 20, 7000 + forged):
                ghost.publish(topic(UP, "tiny", "car-1"), part)
            sending.discard(topic_name)
            forged += 1

    sending: set[str] = set()
    bus.record(poison)
    Supervisor(fleet, bus).run()
    assert forged == 8
    assert fleet.result()["vehicles"]["car-1"]["rejects"] == forged
    assert fleet.fingerprint() == silo.fleet.fingerprint()


def _poisons(update: Update) -> list[tuple[tuple[WeightTensor, ...], int]]:
    first, *rest = update.tensors
    nan = msgspec.structs.replace(first, data=b"\xff" * len(first.data))
    flat = msgspec.structs.replace(first, shape=(len(first.data) // 4,))
    renamed = msgspec.structs.replace(first, name="backdoor")
    changed = [((false, *rest), update.samples) for false in (nan, flat, renamed)]
    return [*changed, (update.tensors, 10**6)]


# Lost vehicles --------------------------------------------------------------------------------------------


def _when(seen: Callable[[Up | Down | Status], bool], act: Callable[[Supervisor], None]) -> Any:
    """Calls `act` at the first message of which `seen` is true."""
    log, done = BusLog(), threading.Event()

    def watch(supervisor: Supervisor) -> None:
        def record(topic_name: str, payload: bytes, qos: int) -> None:
            message = log(topic_name, payload)
            if message is not None and not done.is_set() and seen(message):
                done.set()
                act(supervisor)

        supervisor.bus.record(record)

    return watch, log, done


@pytest.mark.parametrize("victim", ["car-1", "cloud"])
@pytest.mark.parametrize("moment", [FetchWeights, Update], ids=["before training", "with the update"])
def test_kill_in_a_round_ends_bit_identical(
    victim: str, moment: type, silo: RecordedRun, tiny_world: World, tmp_path: Path
) -> None:
    fleet = FederatedFleet(tiny_world, tmp_path, federated=FederatedPlan(statistics="local"))
    supervisor = Supervisor(fleet)
    watch, _, done = _when(
        lambda message: isinstance(message, moment) and message.vehicle == "car-1" and message.turn_id == 2,
        lambda running: running.kill_cloud() if victim == "cloud" else running.kill_vehicle(victim),
    )
    watch(supervisor)
    supervisor.run()
    assert done.is_set()
    assert fleet.fingerprint() == silo.fleet.fingerprint()


def test_vehicle_lost_in_a_round_is_not_waited_for_nor_averaged(tiny_world: World, tmp_path: Path) -> None:
    """car-2 goes mute in round 1 after fetching; its update never comes. The average is car-1's weights."""
    fleet = FederatedFleet(
        tiny_world,
        tmp_path,
        rounds=1,
        first_order=ONE_STEP,
        federated=msgspec.structs.replace(SGD, deadline_s=3.0),
    )
    bus, log = MemoryBus(), BusLog()
    supervisor = Supervisor(fleet, bus)
    bus.record(lambda topic_name, payload, qos: log(topic_name, payload) and None)
    lost = BusLog()

    def mute(topic_name: str, payload: bytes) -> bool:
        if not topic_name.endswith("car-2/up"):
            return False
        message = lost(topic_name, payload)
        return not isinstance(message, FetchWeights) and getattr(message, "turn_id", 0) == 1

    bus.set_faults(drop=mute)
    supervisor.run()
    [dropped] = fleet.events("dropped")
    assert (dropped["vehicle"], dropped["stage"]) == ("car-2", 1)
    [update] = {
        message.vehicle: message
        for _, message in log.messages
        if isinstance(message, Update) and message.vehicle == "car-1"
    }.values()
    alone = unpack(update.tensors, {tensor.name: tensor.shape for tensor in update.tensors})
    for name, array in fleet.weights().items():
        assert np.array_equal(array, alone[name]), name
    result = fleet.result()
    assert result["vehicles"]["car-2"]["local_miou"] is not None, "it was back for the evaluation"
    assert result["frames_seen"] == len(fleet.frames["car-1"]["train"])


def test_vehicle_without_the_local_model_says_what_is_missing(tiny_world: World, tmp_path: Path) -> None:
    class Bare(FederatedFleet):
        def host(self, *cars: str, **patience: float) -> HostConfig:
            return TinyFleet.host(self, *cars, **patience)

    patience = PatienceConfig(join_s=3, retry_s=0.2, give_up_s=30, heartbeat_s=0.5, on_failure="stop")
    with pytest.raises(Mistake, match=r"did not join .*; refused: car-1 this vehicle has no local model"):
        Supervisor(Bare(tiny_world, tmp_path, patience=patience)).run()


def test_cloud_without_the_local_model_says_what_is_missing(tiny_world: World, tmp_path: Path) -> None:
    fleet = FederatedFleet(tiny_world, tmp_path)
    fleet.local_model = fleet.local_model.rename(tmp_path / "where vehicles alone look")
    with pytest.raises(Mistake, match="fedavg needs the initial weights of the whole network"):
        Supervisor(fleet).run()


def test_turns_of_fedavg_ask_for_no_upload(silo: RecordedRun) -> None:
    turns = [message for _, message in silo.log.messages if isinstance(message, Turn)]
    assert turns and all(turn.uploads == () for turn in turns)


def test_vehicle_without_torch_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    with pytest.raises(Mistake, match=r"pip install 'blackfleet\[federated\]'"):
        require_torch()
