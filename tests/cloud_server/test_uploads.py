"""Uploads of some of the frames only, and the counts of what becomes of each uploaded frame."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fleet_fixtures import CARS, TinyFleet, World, interrupt, unreliable_bus
from hypothesis import given
from hypothesis import strategies as st
from supervision import Supervisor
from test_loss_weighting import WEIGHTED, Watched

from cloud_server.algorithms.upload_limit import UploadLimit
from cloud_server.config import UploadConfig, ZerothOrderConfig
from cloud_server.desk.ledger import UploadCounts, UploadLedger
from cloud_server.errors import CloudError
from cloud_server.storage.label_store import LabelStore
from datasets.labels import CAMVID
from protocol.codec.tensor import encode
from protocol.messages import SPLITS, LabelOffer, OfferedLabel, Turn, Upload
from protocol.plans.activation import ActivationPlan
from protocol.plans.first_order import FirstOrder
from protocol.plans.local_loss import LocalLossPlan
from protocol.session import topics
from protocol.session.memory import MemoryBus

CAR = CARS[0]
EPOCHS = 3
ROUNDS = 2


def fleet_of(world: World, folder: Path, **changes: object) -> TinyFleet:
    settings = {
        "algorithm": "blackfleet",
        "local_loss": LocalLossPlan(warm_up_epochs=1, epochs=1),
        "first_order": FirstOrder(epochs=EPOCHS, batch_size=4),
        "rounds": ROUNDS,
    }
    return TinyFleet(world, folder, **{**settings, **changes})


def run(fleet: TinyFleet, bus: MemoryBus | None = None) -> TinyFleet:
    Supervisor(fleet, bus).run()
    return fleet


def counts_of(fleet: TinyFleet) -> dict[str, UploadCounts]:
    vehicles = fleet.result()["vehicles"]
    return {car: msgspec.convert(vehicles[car]["uploads"], UploadCounts) for car in CARS}


def each_once(frames: int) -> UploadCounts:
    """The counts of a vehicle that has uploaded so many train frames in all."""
    return UploadCounts(acknowledged=frames, trained=frames, passes=EPOCHS * frames)


@pytest.fixture(scope="module")
def calm(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> TinyFleet:
    return run(fleet_of(tiny_world, tmp_path_factory.mktemp("calm")))


# What is counted --------------------------------------------------------------------------------------


def closed(
    acknowledged: Sequence[int], passes: Sequence[Sequence[int]], before: UploadCounts | None = None
) -> UploadCounts:
    ledger, totals = UploadLedger(), {CAR: before or UploadCounts()}
    for number, frames in enumerate(passes):
        ledger.visit(number, CAR, frames)
    ledger.acknowledge(CAR, acknowledged)
    ledger.close(totals)
    ledger.close(totals)  # what is closed counts no more
    return totals[CAR]


def test_ledger_tells_lost_from_repeated_frames() -> None:
    assert closed([0, 1, 2], [[2, 0, 1], [1, 2, 0]]) == UploadCounts(acknowledged=3, trained=3, passes=6)
    assert closed([0, 1, 2], [[2, 0], [1, 2, 0]]) == UploadCounts(acknowledged=3, trained=2, passes=5)
    assert closed([0, 1], [[0, 1, 0]]) == UploadCounts(acknowledged=2, trained=2, passes=3, repeated=1)
    assert closed([0, 1], []) == UploadCounts(acknowledged=2)
    once = UploadCounts(acknowledged=2, trained=2, passes=2)
    assert closed([0], [[0]], once) == UploadCounts(acknowledged=3, trained=3, passes=3)


@pytest.mark.parametrize("algorithm", ["blackfleet", "blackfed-v2", "frozen"])
def test_every_upload_is_trained_on_once_a_pass(algorithm: str, tiny_world: World, tmp_path: Path) -> None:
    fleet = run(fleet_of(tiny_world, tmp_path, algorithm=algorithm))
    assert counts_of(fleet) == {car: each_once(ROUNDS * len(fleet.frames[car]["train"])) for car in CARS}


def test_cloud_that_does_not_train_says_so(tiny_world: World, tmp_path: Path) -> None:
    fleet = run(fleet_of(tiny_world, tmp_path, rounds=1, first_order=FirstOrder(epochs=0)))
    assert counts_of(fleet)[CAR] == UploadCounts(acknowledged=len(fleet.frames[CAR]["train"]))


@pytest.mark.parametrize("victim", ["car", "cloud"])
def test_kills_lose_and_double_no_upload(victim: str, calm: TinyFleet, tmp_path: Path) -> None:
    """In the midst of uploads, with both vehicles' turns under way, after one of them is done, at its end.

    Of a killed vehicle the cloud knows which uploads were in vain; a killed cloud does not. That
    states lie in databases, not in folders as the undisturbed fleet's do, makes no difference.
    """
    points = {(CAR, "upload", 3), (CARS[1], "upload", 4), (CAR, "done", 2), (CARS[1], "turn", 4)}
    supervisor = Supervisor(fleet_of(calm.world, tmp_path))
    supervisor.fleet.in_databases = True
    supervisor.run_with_kills(points, victim)
    counts = counts_of(supervisor.fleet)
    if victim == "car":
        assert sum(entry.discarded for entry in counts.values()) > 0
    for entry in counts.values():
        entry.discarded = 0
    assert counts == counts_of(calm)
    assert supervisor.fleet.fingerprint() == calm.fingerprint()


def test_doubled_late_and_lost_messages_are_counted_once(calm: TinyFleet, tmp_path: Path) -> None:
    bus = unreliable_bus(5, duplicate=0.1, delay=0.1, drop=0.1)
    fleet = run(fleet_of(calm.world, tmp_path), bus)
    assert counts_of(fleet) == counts_of(calm)
    assert fleet.fingerprint() == calm.fingerprint()


# Some of the frames only ------------------------------------------------------------------------------


@given(n=st.integers(1, 60), most=st.integers(1, 70), shift=st.integers(0, 100))
def test_choices_are_even_and_take_turns(n: int, most: int, shift: int) -> None:
    frames = range(100, 100 + n)
    chosen = UploadLimit(most=most, shift=shift).choose(frames)
    assert len(chosen) == len(set(chosen)) == min(n, most)
    assert set(chosen) <= set(frames)
    around = [
        (later - earlier - 1) % n + 1 for earlier, later in zip(chosen, (*chosen[1:], chosen[0]), strict=True)
    ]
    assert max(around) - min(around) <= 1
    turns = -(-n // most)
    seen = {
        index for turn in range(turns) for index in UploadLimit(most=most, shift=shift + turn).choose(frames)
    }
    assert seen == set(frames)


def frames_on_the_bus(bus: MemoryBus) -> tuple[Counter[tuple[str, str, int]], Counter[str]]:
    """To be filled by a run: uploads by (vehicle, split, frame), and labels by vehicle."""
    uploads: Counter[tuple[str, str, int]] = Counter()
    labels: Counter[str] = Counter()

    def note(topic: str, payload: bytes, qos: int) -> None:
        car = topic.split("/")[3]
        content: Any = msgspec.msgpack.decode(payload[1:])
        if content[0] == "upload":
            upload = msgspec.msgpack.decode(payload[1:], type=Upload)
            uploads.update((car, upload.split, index) for index in upload.frames)
        elif content[0] == "labels":
            labels[car] += len(content[5])

    bus.record(note)
    return uploads, labels


def test_limited_uploads_take_turns_and_cost_less(calm: TinyFleet, tmp_path: Path) -> None:
    """Of 6 train frames 4 a round: all of them within two rounds. Of 2 validation frames always the first."""
    bus = MemoryBus()
    uploads, labels = frames_on_the_bus(bus)
    fleet = run(fleet_of(calm.world, tmp_path, uploads=UploadConfig(train_frames=4, val_frames=1)), bus)
    train, val = (len(fleet.frames[CAR][split]) for split in SPLITS[:2])
    assert (train, val) == (6, 2)
    by_frame = {index: uploads[CAR, "train", index] for index in range(train)}
    assert sum(by_frame.values()) == 4 * ROUNDS
    assert min(by_frame.values()) >= 1
    assert [uploads[CAR, "val", index] for index in range(train, train + val)] == [ROUNDS, 0]
    tested = sum(len(fleet.frames[CAR][split]) for split in ("test", "ood"))
    assert labels[CAR] == train + 1 + tested
    assert counts_of(fleet) == {car: each_once(4 * ROUNDS) for car in CARS}
    result, full = fleet.result(), calm.result()
    assert result["frames_seen"] == len(CARS) * EPOCHS * 4 * ROUNDS
    assert result["uplink_bytes"] < full["uplink_bytes"]


def test_only_frames_that_were_uploaded_are_weighted(tiny_world: World, tmp_path: Path) -> None:
    """With loss maps of 4 of 6 frames; the others' pixels weigh 1."""
    limits = UploadConfig(train_frames=4)
    watched = Watched(fleet_of(tiny_world, tmp_path, local_loss=WEIGHTED, uploads=limits))
    assert watched.fetched == {(car, 2): [(0, 1, 3, 4)] for car in CARS}


@pytest.mark.parametrize("algorithm", ["blackfed-v1", "split"])
def test_other_algorithms_keep_the_limit_too(algorithm: str, tiny_world: World, tmp_path: Path) -> None:
    bus = MemoryBus()
    uploads, _ = frames_on_the_bus(bus)
    limits = UploadConfig(train_frames=2, val_frames=1)
    fleet = run(fleet_of(tiny_world, tmp_path, algorithm=algorithm, uploads=limits, rounds=1), bus)
    by_split = Counter({split: 0 for split in ("train", "val")})
    for (car, split, _), times in uploads.items():
        by_split[split] += times if car == CAR else 0
    assert (by_split["train"], by_split["val"]) == (0 if algorithm == "split" else 2, 1)
    seen = 6 if algorithm == "split" else 2
    assert fleet.result()["frames_seen"] == len(CARS) * EPOCHS * seen


def test_limit_above_the_frames_changes_nothing(calm: TinyFleet, tmp_path: Path) -> None:
    fleet = run(fleet_of(calm.world, tmp_path, uploads=UploadConfig(train_frames=6, val_frames=100)))
    assert fleet.fingerprint() == calm.fingerprint()


def test_killed_fleet_with_limited_uploads_ends_alike(calm: TinyFleet, tmp_path: Path) -> None:
    limits = UploadConfig(train_frames=4, val_frames=1)
    undisturbed = run(fleet_of(calm.world, tmp_path / "undisturbed", uploads=limits))
    supervisor = Supervisor(fleet_of(calm.world, tmp_path / "killed", uploads=limits))
    points = {(CAR, "upload", 3), (CARS[1], "done", 3)}
    supervisor.run_with_kills(points, "cloud")
    assert supervisor.fleet.fingerprint() == undisturbed.fingerprint()


@pytest.mark.parametrize("algorithm", ["blackfleet", "blackfed-v2", "split", "activation"])
def test_train_labels_at_the_size_of_the_logits_change_bytes_alone(
    algorithm: str, tiny_world: World, tmp_path: Path
) -> None:
    """Weights, losses and scores are the same to the bit; only what the labels weigh differs."""
    settings: dict[str, Any] = {"algorithm": algorithm, "local_loss": WEIGHTED, "rounds": 2}
    if algorithm == "activation":
        estimator = ZerothOrderConfig(estimator="activation")
        settings |= {"algorithm": "blackfed-v1", "zeroth_order": estimator}
        settings |= {"activation": ActivationPlan(seeds=2)}
    runs = {
        size: run(fleet_of(tiny_world, tmp_path / size, uploads=UploadConfig(train_labels=size), **settings))
        for size in ("input", "logits")
    }
    full, reduced = runs["input"], runs["logits"]
    assert reduced.fingerprint() == full.fingerprint()
    assert reduced.scores() == full.scores()
    sent = {
        size: fleet.result()["vehicles"][CAR]["uplink_bytes_by_type"]["labels"]
        for size, fleet in runs.items()
    }
    assert sent["logits"] < sent["input"]
    with LabelStore(reduced.run_folder / "cloud" / "labels", num_classes=CAMVID.num_classes) as store:
        assert store.batch(CAR, (0, 1)).shape == (2, 12, 16)
        assert store.batch(CAR, (6,)).shape == (1, 48, 64)


def test_train_label_of_another_size_than_the_turn_says_is_rejected(
    tiny_world: World, tmp_path: Path
) -> None:
    limits = UploadConfig(train_labels="logits")
    undisturbed = run(fleet_of(tiny_world, tmp_path / "undisturbed", uploads=limits, rounds=1))
    bus = MemoryBus()

    def say(turn: Turn, payload: bytes) -> tuple[topics.Channel, object]:
        header = {"vehicle": CAR, "grant": turn.grant, "turn_id": turn.turn_id, "step": 10**6}
        label = OfferedLabel(index=0, key="a", digest=b"0" * 16, height=48, width=64)
        return topics.UP, LabelOffer(**header, labels=(label,))

    interrupt(bus, "upload", say)
    fleet = run(fleet_of(tiny_world, tmp_path / "attacked", uploads=limits, rounds=1), bus)
    [reject] = fleet.events("reject")
    assert reject["reason"] == "label of train frame 0 is 64x48 pixels, expected 16x12"
    assert fleet.fingerprint() == undisturbed.fingerprint()


def test_unknown_size_of_train_labels_is_named() -> None:
    with pytest.raises(ValueError, match=r"uploads\.train_labels must be one of input, logits, got 'small'"):
        UploadConfig(train_labels="small")


@pytest.mark.parametrize("name", ["train_frames", "val_frames"])
def test_impossible_limit_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"uploads.{name} must be at least 1, got 0"):
        UploadConfig(**{name: 0})


def test_upload_of_a_frame_that_is_not_asked_for_is_rejected(tiny_world: World, tmp_path: Path) -> None:
    """Even where its label is known, from queries; what the run learns is as without it."""
    settings = {"algorithm": "blackfed-v1", "uploads": UploadConfig(train_frames=4), "rounds": 1}
    undisturbed = run(fleet_of(tiny_world, tmp_path / "undisturbed", **settings))
    bus = MemoryBus()

    def say(turn: Turn, payload: bytes) -> tuple[topics.Channel, object]:
        header = {"vehicle": CAR, "grant": turn.grant, "turn_id": turn.turn_id, "step": 10**6}
        [stranger, *_] = set(range(6)).difference(turn.upload_frames["train"])
        features = encode(np.ones((1, 4, 6, 8), np.float32), 8)
        return topics.UP, Upload(**header, split="train", frames=(stranger,), features=features)

    interrupt(bus, "upload", say)
    fleet = run(fleet_of(tiny_world, tmp_path / "attacked", **settings), bus)
    [reject] = fleet.events("reject")
    assert re.fullmatch(r"train frame \d is not asked for in this turn", reject["reason"])
    assert fleet.fingerprint() == undisturbed.fingerprint()


def test_vehicle_refuses_to_upload_what_it_lacks(
    tiny_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UploadLimit, "choose", lambda self, frames: (0, 99))
    with pytest.raises(CloudError, match="the turn asks for train frame 99, which this vehicle lacks"):
        run(fleet_of(tiny_world, tmp_path, uploads=UploadConfig(train_frames=2)))
