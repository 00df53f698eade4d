"""Federated averaging over the protocol: what is averaged, what crosses, and what a lost vehicle changes."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from fleet_fixtures import CARS, IMAGE_SIZE, Supervisor, TinyFleet, World

from cloud_server.algorithms.fedavg import (
    LocalUpdate,
    drawn_vehicles,
    epoch_rates,
    federated_stages,
    weighted_average,
)
from cloud_server.checkpoint import load_checkpoint
from cloud_server.config import CloudConfig, FirstOrderConfig, network_seed
from cloud_server.learner_config import FederatedConfig
from cloud_server.losses import cross_entropy, downsample_labels
from cloud_server.predictions import prediction_name
from cloud_server.schedule import Kind
from cloud_server.server_optimizers import build_server_optimizer
from datasets.catalog import open_dataset
from datasets.frame import resize_frame
from datasets.labels import CAMVID
from edge_client.host import HostConfig
from edge_client.local_network import require_torch
from fleet.local_model import build_whole_network, export_local_model
from protocol.local_model import FOLDER_NAME, LocalModel
from protocol.memory_bus import MemoryBus
from protocol.messages import Down, FetchWeights, Finish, Status, Turn, Up, Update, Weights
from protocol.parts import Reassembler, split
from protocol.topics import UP, parse, topic
from protocol.weights import WeightsError, WeightTensor, pack, unpack

ENCODER = "stride8-c4"
SGD = FederatedConfig(optimizer="sgd", statistics="frozen")
ONE_STEP = FirstOrderConfig(epochs=1, batch_size=100, rate=0.1, schedule="constant", weight_decay=0.0)


class FederatedFleet(TinyFleet):
    """A tiny fleet whose vehicles have the whole network."""

    def __init__(self, world: World, folder: Path, **changes: Any) -> None:
        super().__init__(world, folder, **{"algorithm": "fedavg", "parallel_turns": 2, **changes})
        self.local_model = self.run_folder / FOLDER_NAME
        export_local_model(
            self.local_model,
            encoder=ENCODER,
            network="compact",
            loss="cross-entropy",
            label_space_name="camvid",
            image_size=IMAGE_SIZE,
            encoder_seed=0,
            network_seed=network_seed(self.config.seed),
        )

    def host(self, *cars: str, **patience: float) -> HostConfig:
        plain = super().host(*cars, **patience)
        vehicles = tuple(
            msgspec.structs.replace(
                vehicle,
                local_model=str(self.local_model),
                predictions=str(self.run_folder / "predictions" / vehicle.id),
            )
            for vehicle in plain.vehicles
        )
        return msgspec.structs.replace(plain, vehicles=vehicles)

    def weights(self) -> dict[str, np.ndarray]:
        """The global weights after the run."""
        tensors, _ = load_checkpoint(self.run_folder / "cloud" / "checkpoints")
        return {
            name.removeprefix("global/"): tensor.numpy()
            for name, tensor in tensors.items()
            if name.startswith("global/")
        }


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
        tiny_world, tmp_path_factory.mktemp("silo"), federated=FederatedConfig(statistics="local")
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


def test_one_step_equals_centralized_sgd_on_the_union(tiny_world: World, tmp_path: Path) -> None:
    """Exact with BatchNorm normalising by fixed statistics: a batch's own differ between vehicles and union.

    Every frame here has the same number of labelled pixels, so that the mean over the pixels of the union is
    the mean of the vehicles' means weighted by frames. The vehicles have different numbers of frames.
    """
    fleet = FederatedFleet(tiny_world, tmp_path, rounds=1, first_order=ONE_STEP, federated=SGD)
    fleet.frames["car-1"]["train"] = fleet.frames["car-1"]["train"][:2]
    Supervisor(fleet).run()
    source = open_dataset("camvid", tiny_world.data_root)
    refs = {ref.key: ref for ref in source.refs}
    frames = [
        resize_frame(source.load(refs[key]), *IMAGE_SIZE)
        for car in CARS
        for key in fleet.frames[car]["train"]
    ]
    assert len(frames) == 8
    module = build_whole_network(
        ENCODER,
        "compact",
        image_size=IMAGE_SIZE,
        num_classes=CAMVID.num_classes,
        encoder_seed=0,
        network_seed=network_seed(0),
    ).eval()
    logits = module(torch.from_numpy(np.stack([frame.image_HWC for frame in frames])))
    label_BHW = torch.from_numpy(np.stack([frame.label_HW for frame in frames]))
    small_Bhw = downsample_labels(label_BHW, logits.shape[-2:])
    assert len({int((label != 255).sum()) for label in small_Bhw}) == 1
    cross_entropy(logits, small_Bhw).backward()
    moved = 0.0
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        expected = (parameter - ONE_STEP.rate * parameter.grad).detach().numpy()
        np.testing.assert_allclose(fleet.weights()[name], expected, rtol=0, atol=1e-5, err_msg=name)
        moved = max(moved, float(parameter.grad.abs().max()) * ONE_STEP.rate)
    assert moved > 1e-3


def test_average_is_weighted_by_samples() -> None:
    updates = [
        LocalUpdate(samples=samples, loss=0.0, weights={"w": np.full((2, 2), value, np.float32)})
        for samples, value in ((1, 0.0), (3, 4.0), (4, 10.0))
    ]
    assert np.array_equal(weighted_average(updates)["w"], np.full((2, 2), (3 * 4 + 4 * 10) / 8))


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


def test_server_momentum_is_that_of_torch() -> None:
    optimizer = build_server_optimizer(
        FederatedConfig(server_optimizer="momentum", server_rate=0.5, server_momentum=0.8)
    )
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    reference = torch.optim.SGD([parameter], lr=0.5, momentum=0.8)
    ours = np.zeros(3)
    for gradient in _gradients():
        parameter.grad = torch.from_numpy(gradient)
        reference.step()
        ours = ours - optimizer.step({"w": gradient})["w"]
        np.testing.assert_allclose(ours, parameter.detach().numpy(), atol=1e-12)


def test_server_adam_is_that_of_torch_without_bias_correction() -> None:
    """torch's Adam divides both moments by 1 − βᵗ: a rate and an ε for each step undo that."""
    rate, beta1, beta2, tau = 0.1, 0.9, 0.99, 1e-3
    optimizer = build_server_optimizer(
        FederatedConfig(
            server_optimizer="adam",
            server_rate=rate,
            server_momentum=beta1,
            server_beta2=beta2,
            server_adaptivity=tau,
        )
    )
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    reference = torch.optim.Adam([parameter], betas=(beta1, beta2))
    ours = np.zeros(3)
    for step, gradient in enumerate(_gradients(), start=1):
        root = math.sqrt(1 - beta2**step)
        reference.param_groups[0].update(lr=rate * (1 - beta1**step) / root, eps=tau / root)
        parameter.grad = torch.from_numpy(gradient)
        reference.step()
        ours = ours - optimizer.step({"w": gradient})["w"]
        np.testing.assert_allclose(ours, parameter.detach().numpy(), atol=1e-12)


def _gradients() -> list[np.ndarray]:
    return list(np.random.default_rng(1).normal(size=(4, 3)))


# Rounds ---------------------------------------------------------------------------------------------------


def _config(**changes: Any) -> CloudConfig:
    cars = tuple(f"car-{number}" for number in range(10))
    return CloudConfig(**{"fleet": "f", "vehicles": cars, "algorithm": "fedavg", "rounds": 6, **changes})


def test_drawn_vehicles_follow_from_the_seed() -> None:
    config = _config(federated=FederatedConfig(client_fraction=0.3))
    draws = [drawn_vehicles(config, number) for number in range(1, 7)]
    assert draws == [drawn_vehicles(config, number) for number in range(1, 7)]
    assert all(len(set(draw)) == 3 and set(draw) <= set(config.vehicles) for draw in draws)
    assert len(set(draws)) > 1
    other = msgspec.structs.replace(config, seed=1)
    assert draws != [drawn_vehicles(other, number) for number in range(1, 7)]


def test_stages_evaluate_everyone_and_train_the_drawn() -> None:
    config = _config(federated=FederatedConfig(client_fraction=0.01, deadline_s=5.0))
    first, *rounds, last = federated_stages(config)
    assert (first.kind, last.kind) == (Kind.INITIAL, Kind.FINAL)
    assert first.vehicles == last.vehicles == config.vehicles
    assert [len(stage.vehicles) for stage in rounds] == [1] * 6
    assert all(stage.deadline_s == 5.0 for stage in federated_stages(config))


def test_rates_follow_the_schedule_over_all_rounds() -> None:
    config = _config(first_order=FirstOrderConfig(epochs=2, rate=1.0, schedule="cosine"))
    rates = [rate for number in range(1, 7) for rate in epoch_rates(config, number)]
    expected = [0.5 * (1 + math.cos(math.pi * (epoch + 0.5) / 12)) for epoch in range(12)]
    assert rates == pytest.approx(expected)


def test_training_ends_when_the_miou_has_converged(tiny_world: World, tmp_path: Path) -> None:
    """With a rate of next to nothing no round gains: after one without gain only the evaluation is left."""
    fleet = FederatedFleet(
        tiny_world,
        tmp_path,
        rounds=6,
        first_order=msgspec.structs.replace(ONE_STEP, rate=1e-12),
        federated=FederatedConfig(optimizer="sgd", statistics="frozen", patience_rounds=1),
    )
    Supervisor(fleet).run()
    assert [event["stage"] for event in fleet.events("committed")] == [0, 1, 2, 7]
    assert fleet.events("converged")[0]["round"] == 2


# What crosses ---------------------------------------------------------------------------------------------


def test_only_weights_counts_and_control_cross(silo: RecordedRun) -> None:
    assert {type(message).__name__ for _, message in silo.log.messages} == {
        "Hello", "Welcome", "Turn", "FetchWeights", "Weights", "Update", "SplitScores", "TurnDone", "Ack",
        "Finish", "Status",
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


@pytest.mark.parametrize(
    ("name", "shape", "data", "message"),
    [
        ("b", (2,), np.ones(2, "<f4").tobytes(), "hold 'b', which this network has not"),
        ("a", (1, 2), np.ones(2, "<f4").tobytes(), r"shape \(1, 2\), expected \(2,\)"),
        ("a", (2,), b"1234", "4 bytes, expected 8"),
        ("a", (2,), np.array([1, np.nan], "<f4").tobytes(), "'a' are not finite"),
    ],
    ids=["name", "shape", "size", "nan"],
)
def test_unpack_refuses(name: str, shape: tuple[int, ...], data: bytes, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        unpack([WeightTensor(name, shape, data)], {"a": (2,)})


def test_unpack_refuses_missing_and_double_tensors() -> None:
    tensors = pack({"a": np.zeros(2, np.float32)})
    with pytest.raises(WeightsError, match=r"lack 'b' \(1 of 2 tensors missing\)"):
        unpack(tensors, {"a": (2,), "b": ()})
    with pytest.raises(WeightsError, match="hold 'a' twice"):
        unpack(tensors * 2, {"a": (2,)})


def test_poisoned_updates_are_rejected_counted_and_change_nothing(
    silo: RecordedRun, tiny_world: World, tmp_path: Path
) -> None:
    """Somebody sends NaN, a wrong shape, a wrong name and a wrong count in a vehicle's name in each turn."""
    fleet = FederatedFleet(tiny_world, tmp_path, federated=FederatedConfig(statistics="local"))
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
    fleet = FederatedFleet(tiny_world, tmp_path, federated=FederatedConfig(statistics="local"))
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

    with pytest.raises(ValueError, match="no local model, which fedavg needs"):
        Supervisor(Bare(tiny_world, tmp_path)).run()


def test_cloud_without_the_local_model_says_what_is_missing(tiny_world: World, tmp_path: Path) -> None:
    fleet = TinyFleet(tiny_world, tmp_path, algorithm="fedavg")
    with pytest.raises(ValueError, match="fedavg needs the initial weights of the whole network"):
        Supervisor(fleet).run()


def test_turns_of_fedavg_ask_for_no_upload(silo: RecordedRun) -> None:
    turns = [message for _, message in silo.log.messages if isinstance(message, Turn)]
    assert turns and all(turn.uploads == () for turn in turns)


def test_vehicle_without_torch_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    with pytest.raises(ValueError, match=r"pip install 'blackfleet\[federated\]'"):
        require_torch()
