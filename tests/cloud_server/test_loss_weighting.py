"""Fleets whose vehicles weight their own loss by the cloud's loss maps."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from fleet_fixtures import (
    CARS,
    FLEET,
    TinyFleet,
    World,
    tag,
    unreliable_bus,
)
from supervision import Supervisor
from test_local_loss import LOCAL, Reference, assert_learnt_like, fleet_of, refusal, run
from torch.nn import functional

from cloud_server.algorithms.kept_loss_maps import KeptLossMaps
from cloud_server.config import ZerothOrderConfig
from datasets.labels import VOID
from evaluation.latest import FRAMES_A_VEHICLE, decode_picture, evenly, read_latest
from protocol.codec.tensor import EncodedTensor, decode, encode
from protocol.messages import FetchLossMaps, LossMaps, Turn
from protocol.plans.local_loss import LocalLossPlan
from protocol.session import topics
from protocol.session.memory import MemoryBus

CAR = CARS[0]
WEIGHTED = msgspec.structs.replace(LOCAL, weight_power=0.5)
_BATCH = 4
_TRAIN_FRAMES = 6
_SIZE = (6, 8)


class Watched:
    """A run and the fetches of loss maps that its bus has seen."""

    def __init__(self, fleet: TinyFleet) -> None:
        self.fleet = fleet
        self.fetched: defaultdict[tuple[str, int], list[tuple[int, ...]]] = defaultdict(list)
        """Batches of frames by vehicle and turn."""
        self.maps: dict[tuple[str, int, int], np.ndarray] = {}
        """Answers (B, 1, y, x) by vehicle, turn and step."""
        bus = MemoryBus()
        bus.record(self._note)
        run(fleet, bus)

    def _note(self, topic: str, payload: bytes, qos: int) -> None:
        if tag(payload) == "fetch-maps":
            message = msgspec.msgpack.decode(payload[1:], type=FetchLossMaps)
            self.fetched[message.vehicle, message.turn_id].append(message.frames)
        elif tag(payload) == "maps":
            answer = msgspec.msgpack.decode(payload[1:], type=LossMaps)
            maps = decode(answer.maps, expected_shape=(None, 1, None, None))
            self.maps[answer.vehicle, answer.turn_id, answer.step] = maps

    def loss_maps(self, car: str) -> np.ndarray:
        """Of the train frames (n, y, x) in their order, as fetched in the second turn."""
        found = [
            maps for (vehicle, turn, _), maps in sorted(self.maps.items()) if (vehicle, turn) == (car, 2)
        ]
        return np.concatenate(found)[:, 0]


@pytest.fixture(scope="module")
def calm(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """A run without any disturbance."""
    return Watched(fleet_of(tiny_world, tmp_path_factory.mktemp("calm"), local_loss=WEIGHTED))


@pytest.fixture(scope="module")
def plain(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """The same without weights."""
    return Watched(fleet_of(tiny_world, tmp_path_factory.mktemp("plain"), local_loss=LOCAL))


# What is asked and learnt -----------------------------------------------------------------------------


def test_vehicles_fetch_each_train_frame_s_map_once_a_round_but_the_first(calm: Watched) -> None:
    batches = [tuple(range(_BATCH)), tuple(range(_BATCH, _TRAIN_FRAMES))]
    assert calm.fetched == {(car, 2): batches for car in CARS}
    assert {maps.shape for maps in calm.maps.values()} == {(4, 1, *_SIZE), (2, 1, *_SIZE)}
    for entry in calm.fleet.result()["vehicles"].values():
        assert entry["answers_per_frame"] == 1 and entry["queries"] == len(batches)
        assert entry["uplink_bytes_by_type"]["fetchlossmaps"] > 0
        assert entry["downlink_bytes_by_type"]["lossmaps"] > 0


def test_maps_are_of_the_loss_after_the_cloud_s_learning(calm: Watched) -> None:
    """Their mean is the frames' mean loss, which is about that of the last pass."""
    losses = [event["losses"] for event in calm.fleet.events("learned")]
    mean = np.mean([calm.loss_maps(car).mean() for car in CARS])
    assert 0.1 * losses[0][-1] < mean < 1.5 * losses[0][-1]


def test_latest_maps_are_kept_for_whoever_looks_on(calm: Watched) -> None:
    for car in CARS:
        predicted, mapped = read_latest(calm.fleet.run_folder, car)
        assert (predicted.split, mapped.split, mapped.stage) == ("val", "train", 1)
        few = [calm.loss_maps(car)[index] for index in evenly(_TRAIN_FRAMES, FRAMES_A_VEHICLE)]
        assert mapped.most_loss == pytest.approx(np.max(few), rel=0.01)
        for frame, map_yx in zip(mapped.frames, few, strict=True):
            shown_yx = decode_picture(frame.loss_map) * mapped.most_loss / 255
            np.testing.assert_allclose(shown_yx, map_yx, atol=0.02 * mapped.most_loss)


def test_learning_equals_torch_with_weighted_pixels(tiny_world: World, tmp_path: Path) -> None:
    local = LocalLossPlan(
        warm_up_epochs=2, epochs=1, rate=2e-4, head_rate=5e-4, weight_power=0.7, weight_cap=2
    )
    watched = Watched(fleet_of(tiny_world, tmp_path, vehicles=(CAR,), local_loss=local))

    class WeightedReference(Reference):
        turn_id = 1

        def learn(self, turn_id: int) -> list[float]:
            self.turn_id = turn_id
            return super().learn(turn_id)

        def loss(self, logits: torch.Tensor, label: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
            if self.turn_id == 1:
                return super().loss(logits, label, chosen)
            pixels = functional.cross_entropy(logits, label.long(), ignore_index=VOID, reduction="none")
            return (pixels * self.weights()[chosen]).sum() / (label != VOID).sum()

        def weights(self) -> torch.Tensor:
            """(n, h, w), by another way than that of the vehicle."""
            map_nyx = torch.from_numpy(watched.loss_maps(CAR)).double()
            known = (self.small_labels() != VOID).double()
            known_nyx = functional.avg_pool2d(known[:, None], 2)[:, 0]
            per_known = map_nyx * known.mean((1, 2))[:, None, None] / known_nyx.clamp(min=1e-9)
            loss = per_known.repeat_interleave(2, 1).repeat_interleave(2, 2)
            weight = (loss / loss[known > 0].mean()).clamp(max=2) ** 0.7
            return (weight / weight[known > 0].mean()).float()

    assert_learnt_like(WeightedReference(watched.fleet), watched.fleet)


def test_power_zero_fetches_nothing_and_first_turns_are_alike(calm: Watched, plain: Watched) -> None:
    assert not plain.fetched and not plain.maps
    for turn_id, same in ((1, True), (2, False)):
        thetas = [fleet.states(CAR).load(turn_id).theta for fleet in (calm.fleet, plain.fleet)]
        assert np.array_equal(*thetas) is same


def test_without_feedback_the_run_is_that_of_power_zero(plain: Watched, tmp_path: Path) -> None:
    without = Watched(
        fleet_of(plain.fleet.world, tmp_path, algorithm="blackfleet-no-feedback", local_loss=WEIGHTED)
    )
    assert not without.fetched
    for car in CARS:
        thetas = [fleet.states(car).load(2).theta for fleet in (plain.fleet, without.fleet)]
        assert np.array_equal(*thetas)


def test_without_local_epochs_in_rounds_nothing_is_fetched(tiny_world: World, tmp_path: Path) -> None:
    local = msgspec.structs.replace(WEIGHTED, epochs=0)
    assert not Watched(fleet_of(tiny_world, tmp_path, local_loss=local)).fetched


def test_coarser_maps_are_asked_for_where_the_settings_say_so(tiny_world: World, tmp_path: Path) -> None:
    local = msgspec.structs.replace(WEIGHTED, weight_map_stride=2)
    watched = Watched(fleet_of(tiny_world, tmp_path, local_loss=local))
    assert {maps.shape[2:] for maps in watched.maps.values()} == {(3, 4)}


# Exactly once -----------------------------------------------------------------------------------------


def test_killed_processes_change_nothing(calm: Watched, tmp_path: Path) -> None:
    """Before, amid and after the fetches, and between the learning that made the maps and their use."""
    points = {(CAR, "fetch-maps", 1), (CARS[1], "maps", 2), (CAR, "done", 2), (CARS[1], "turn", 3)}
    supervisor = Supervisor(fleet_of(calm.fleet.world, tmp_path, local_loss=WEIGHTED))
    supervisor.run_with_kills(points)
    assert supervisor.fleet.fingerprint() == calm.fleet.fingerprint()


def test_unreliable_delivery_changes_nothing(calm: Watched, tmp_path: Path) -> None:
    bus = unreliable_bus(5, duplicate=0.1, delay=0.1, drop=0.1)
    fleet = run(fleet_of(calm.fleet.world, tmp_path, local_loss=WEIGHTED), bus)
    assert fleet.fingerprint() == calm.fleet.fingerprint()
    assert all(entry["answers_per_frame"] == 1 for entry in fleet.result()["vehicles"].values())


# What does not fit ------------------------------------------------------------------------------------


def interrupt(
    bus: MemoryBus,
    before: str,
    turn_id: int,
    say: Callable[[Turn, bytes], list[tuple[topics.Channel, object]]],
) -> None:
    """Say something, once, at the first message with that tag of a vehicle in a turn."""
    client = bus.client("attacker")
    client.connect(0)
    turns: list[Turn] = []
    spoken: list[object] = []

    def listen(topic: str, payload: bytes, qos: int) -> None:
        if topics.parse(topic).vehicle != CAR or spoken:
            return
        if tag(payload) == "turn":
            turns.append(msgspec.msgpack.decode(payload[1:], type=Turn))
        elif tag(payload) == before and turns and turns[-1].turn_id == turn_id:
            spoken.append(None)
            for channel, message in say(turns[-1], payload):
                client.publish(topics.topic(channel, FLEET, CAR), b"\x00" + msgspec.msgpack.encode(message))

    bus.record(listen)


@pytest.mark.parametrize(
    ("turn_id", "fetches", "changes"),
    [
        (
            2,
            {
                (6,): "frame 6 is no train frame of 'car-1'",
                (): "no frames are named",
                (0, 1, 2, 2): "a frame is named twice",
                (1, 2): "no loss maps are kept of 2 frames from 1 on",
            },
            {},
        ),
        (1, {(0, 1, 2, 3): "this turn fetches no loss maps"}, {}),
        (2, {(0, 1, 2, 3): "this turn fetches no loss maps"}, {"local_loss": LOCAL}),
        (
            2,
            {(0, 1, 2, 3): "frame 0 would have 2 answers in this turn, more than the 1 allowed"},
            {"zeroth_order": ZerothOrderConfig(epochs=0, max_answers_per_frame=1)},
        ),
    ],
    ids=["no batch", "first round", "power 0", "too many"],
)
def test_fetch_that_does_not_fit_is_rejected_and_changes_nothing(
    turn_id: int,
    fetches: dict[tuple[int, ...], str],
    changes: dict[str, Any],
    calm: Watched,
    tmp_path: Path,
) -> None:
    def fetch(turn: Turn, payload: bytes) -> list[tuple[topics.Channel, object]]:
        header = {"vehicle": CAR, "grant": turn.grant, "turn_id": turn.turn_id}
        return [
            (topics.UP, FetchLossMaps(**header, step=10**6 + number, frames=frames))
            for number, frames in enumerate(fetches)
        ]

    bus = MemoryBus()
    interrupt(bus, "upload", turn_id, fetch)
    fleet = run(fleet_of(calm.fleet.world, tmp_path, **{"local_loss": WEIGHTED, **changes}), bus)
    rejected = [event["reason"] for event in fleet.events("reject")]
    assert len(rejected) == len(fetches)
    assert all(map(str.startswith, rejected, fetches.values())), rejected
    if "local_loss" not in changes:
        assert fleet.fingerprint() == calm.fleet.fingerprint()


def losses(shape: tuple[int, ...], lowest: float = 0.0) -> EncodedTensor:
    values = np.linspace(lowest, 3, int(np.prod(shape)), dtype=np.float32)
    return encode(values.reshape(shape), 8)


_UNUSABLE = {
    "another size": (losses((4, 1, 12, 16)), "tensor shape must be 4x1x6x8, got 4x1x12x16"),
    "another number": (losses((4, 2, 6, 8)), "tensor shape must be 4x1x6x8, got 4x2x6x8"),
    "NaN": (
        msgspec.structs.replace(losses((4, 1, 6, 8)), zero=np.full(1, np.nan, "<f4").tobytes()),
        "tensor zero point holds NaN or infinity",
    ),
    "negative": (losses((4, 1, 6, 8), -1.0), "a loss must not be negative, got -1"),
}


@pytest.mark.parametrize("name", ["another size", "negative"])
def test_vehicle_asks_again_after_an_unusable_answer(name: str, calm: Watched, tmp_path: Path) -> None:
    def spoilt(turn: Turn, payload: bytes) -> list[tuple[topics.Channel, object]]:
        fetch = msgspec.msgpack.decode(payload[1:], type=FetchLossMaps)
        header = {"vehicle": CAR, "grant": fetch.grant, "turn_id": fetch.turn_id, "step": fetch.step}
        return [(topics.DOWN, LossMaps(**header, maps=_UNUSABLE[name][0]))]

    bus = MemoryBus()
    interrupt(bus, "fetch-maps", 2, spoilt)
    fleet = run(fleet_of(calm.fleet.world, tmp_path, local_loss=WEIGHTED), bus)
    assert fleet.fingerprint() == calm.fleet.fingerprint()


@pytest.mark.parametrize("name", _UNUSABLE)
def test_vehicle_stops_in_one_line_after_unusable_answers(
    name: str, tiny_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps, reason = _UNUSABLE[name]
    monkeypatch.setattr(KeptLossMaps, "find", lambda *_: maps)
    line = refusal(fleet_of(tiny_world, tmp_path, vehicles=(CAR,), local_loss=WEIGHTED))
    assert re.search(f"answered 3 times with unusable loss maps: {reason}", line)


def test_stride_that_does_not_divide_the_features_ends_the_run_in_one_line(
    tiny_world: World, tmp_path: Path
) -> None:
    local = msgspec.structs.replace(WEIGHTED, weight_map_stride=4)
    assert "weight_map_stride must divide the feature map of 6x8, got 4" in refusal(
        fleet_of(tiny_world, tmp_path, vehicles=(CAR,), local_loss=local)
    )
