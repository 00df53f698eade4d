"""Augmentation over the bus: the cloud compares what it gets with labels as the vehicle saw the frames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fleet_fixtures import CARS, IMAGE_SIZE, TinyFleet, World, interrupt
from numpy.typing import NDArray
from supervision import Supervisor

from cloud_server.algorithms.table import algorithm_row
from cloud_server.config import UploadConfig, ZerothOrderConfig
from cloud_server.run.combinations import check_combination
from cloud_server.training.inference import Inference
from cloud_server.training.trainer import Trainer
from datasets.augment import View, draw_view, view_seed
from datasets.catalog import open_dataset
from edge_client.encoder.bundle import EncoderBundle
from edge_client.encoder.runtime import Encoder
from edge_client.frames import FrameCache
from protocol.codec.tensor import encode
from protocol.errors import SettingError
from protocol.messages import Query, Turn, Upload
from protocol.noise import derive_seed
from protocol.plans.activation import ActivationPlan
from protocol.plans.augmentation import Augmentation
from protocol.plans.coding import Coding
from protocol.plans.first_order import FirstOrder
from protocol.plans.local_loss import LocalLossPlan
from protocol.plans.spsa import SpsaPlan
from protocol.plans.white_box import WhiteBoxPlan
from protocol.session import topics
from protocol.session.memory import MemoryBus

CAR = CARS[0]
ALL = Augmentation(flip=True, crop=0.5, jitter=0.3)
STILL = 1e-12
"""A rate at which an encoder stays what it is."""


def fleet_of(world: World, folder: Path, **changes: object) -> TinyFleet:
    settings: dict[str, object] = {
        "vehicles": (CAR,),
        "rounds": 1,
        "augmentation": ALL,
        "coding": Coding(bits=32),
        "first_order": FirstOrder(epochs=1, batch_size=4, replay_steps=1),
        "local_loss": LocalLossPlan(warm_up_epochs=1, epochs=0, rate=STILL),
        "white_box": WhiteBoxPlan(rate=STILL),
        "spsa": SpsaPlan(queries=1, rate=STILL, perturbation=STILL),
        "activation": ActivationPlan(seeds=1, rate=STILL),
    }
    return TinyFleet(world, folder, **{**settings, **changes})


Pair = tuple[NDArray[np.float32], NDArray[np.uint8]]


@contextmanager
def compared() -> Iterator[list[Pair]]:
    """Features and labels of each frame whose loss the cloud computes in the body."""
    pairs: list[Pair] = []

    def note(features_BCHW: Any, label_BHW: Any) -> None:
        if len(label_BHW):
            pairs.extend((np.array(f), np.array(la)) for f, la in zip(features_BCHW, label_BHW, strict=True))

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            (Trainer, "train_step"),
            (Trainer, "train_step_with_gradient"),
            (Trainer, "train_epochs"),
            (Inference, "evaluate_loss"),
            (Inference, "loss_map"),
        ):
            original = getattr(owner, name)

            def noted(
                self: Any, features: Any, label: Any, *a: Any, original: Any = original, **k: Any
            ) -> Any:
                note(features, label)
                return original(self, features, label, *a, **k)

            patch.setattr(owner, name, noted)
        loss_maps = Inference.loss_maps

        def maps(self: Any, copies: Any, label: Any, cells: Any) -> Any:
            copies = list(copies)
            note(copies[0], label)
            return loss_maps(self, copies, label, cells)

        patch.setattr(Inference, "loss_maps", maps)
        yield pairs


def views_of_run(fleet: TinyFleet) -> dict[bytes, list[NDArray[np.uint8]]]:
    """By label as it is seen: the pictures that it belongs to, of all draws of the training turn."""
    cache = FrameCache(open_dataset("camvid", fleet.world.data_root), IMAGE_SIZE)
    turn_seed = derive_seed(fleet.config.seed, "turn", 1, CAR)
    seen: dict[bytes, list[NDArray[np.uint8]]] = {}
    for index, key in enumerate(fleet.frames[CAR]["train"]):
        image_HWC, label_HW = cache.resized(key)
        for draw in range(3):
            view = draw_view(fleet.config.augmentation, IMAGE_SIZE, view_seed(turn_seed, draw, index))
            seen.setdefault(view.label(label_HW).tobytes(), []).append(view.image(image_HWC))
    return seen


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": "blackfed-v2"},
        {"algorithm": "blackfed-v1", "zeroth_order": ZerothOrderConfig(batch_size=3, estimator="activation")},
        {"algorithm": "split"},
        {"algorithm": "blackfleet"},
    ],
    ids=lambda changes: changes["algorithm"],
)
def test_labels_in_the_cloud_are_those_of_what_the_vehicle_saw(
    tiny_world: World, tmp_path: Path, changes: dict[str, object]
) -> None:
    fleet = fleet_of(tiny_world, tmp_path, **changes)
    with compared() as pairs:
        Supervisor(fleet).run()
    seen = views_of_run(fleet)
    bundle = EncoderBundle.load(tiny_world.bundle)
    encoder = Encoder(bundle, mode="rebuild", providers=["CPUExecutionProvider"])
    assert len(pairs) >= 12, "uploads, replayed ones, and what was asked or trained on before"
    differences = []
    for features_CHW, label_HW in pairs:
        images = seen[label_HW.tobytes()]
        expected = [encoder.forward(bundle.theta0, image_HWC[None])[0] for image_HWC in images]
        differences.append(min(float(np.abs(one - features_CHW).max()) for one in expected))
    assert max(differences) < 1e-3


def test_killed_processes_change_nothing_of_what_augmented_frames_teach(
    tiny_world: World, tmp_path: Path
) -> None:
    """Draws, cached views and loss maps of views are the same after a kill."""
    settings: dict[str, object] = {
        "algorithm": "blackfleet",
        "vehicles": CARS,
        "rounds": 2,
        "coding": Coding(),
        "local_loss": LocalLossPlan(warm_up_epochs=1, epochs=1, weight_power=1.0),
    }
    calm, disturbed = (fleet_of(tiny_world, tmp_path / name, **settings) for name in ("calm", "disturbed"))
    Supervisor(calm).run()
    supervisor = Supervisor(disturbed)
    killed: set[str] = set()

    def kill(supervisor: Supervisor, tag: str, car: str) -> None:
        if tag == "fetch-maps" and car == CARS[0] and "cloud" not in killed:
            killed.add("cloud")
            supervisor.kill_cloud()
        elif tag == "upload" and car == CARS[1] and "car" not in killed:
            killed.add("car")
            supervisor.kill_vehicle(car)

    supervisor.sabotage(kill)
    supervisor.run()
    assert killed == {"cloud", "car"}
    assert disturbed.fingerprint() == calm.fingerprint()
    plain = fleet_of(tiny_world, tmp_path / "plain", **settings, augmentation=Augmentation())
    Supervisor(plain).run()
    assert plain.fingerprint() != calm.fingerprint()


@pytest.mark.parametrize(
    ("augmentation", "draw", "split", "reason"),
    [
        (ALL, 99, "train", "this turn's draws go from 0 to 1, got 99"),
        (ALL, 0, "val", "val frames are seen as they are in this turn, not by draw 0"),
        (Augmentation(), 0, "train", "train frames are seen as they are in this turn, not by draw 0"),
    ],
    ids=["no such draw", "no train frame", "no augmentation"],
)
def test_wrong_draw_is_rejected_and_changes_nothing(
    tiny_world: World, tmp_path: Path, augmentation: Augmentation, draw: int, split: str, reason: str
) -> None:
    fleet = fleet_of(tiny_world, tmp_path, algorithm="frozen", augmentation=augmentation)
    features = encode(np.zeros((1, 4, 6, 8), np.float32), 32)

    def wrong(turn: Turn, payload: bytes) -> tuple[topics.Channel, object]:
        header = {"vehicle": CAR, "grant": turn.grant, "turn_id": turn.turn_id, "step": 900}
        index = 0 if split == "train" else len(fleet.frames[CAR]["train"])
        return topics.UP, Upload(**header, split=split, frames=(index,), features=features, draw=draw)

    bus = MemoryBus()
    interrupt(bus, "upload", wrong)
    Supervisor(fleet, bus).run()
    rejects = [event["reason"] for event in fleet.events("reject")]
    assert rejects == [reason]
    assert fleet.result()["vehicles"][CAR]["uploads"]["acknowledged"] == len(fleet.frames[CAR]["train"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"uploads": UploadConfig(train_labels="logits")}, "uploads.train_labels must be input, got logits"),
        ({"uploads": UploadConfig(train_labels="logits"), "augmentation": Augmentation(jitter=0.1)}, None),
    ],
)
def test_settings_that_contradict_augmentation_are_named(
    tiny_world: World, tmp_path: Path, changes: dict[str, object], reason: str | None
) -> None:
    config = fleet_of(tiny_world, tmp_path, **changes).config
    if reason is None:
        check_combination(config)
        return
    with pytest.raises(SettingError, match=reason):
        check_combination(config)


def test_algorithm_of_ones_own_must_say_that_it_heeds_views(
    tiny_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = algorithm_row("split")
    monkeypatch.setattr(
        "cloud_server.run.combinations.algorithm_row",
        lambda name: type(row)(**{**vars(row), "heeds_views": False}),
    )
    with pytest.raises(SettingError, match=r"split does not say .*heeds_views.*: augmentation must be off"):
        check_combination(fleet_of(tiny_world, tmp_path, algorithm="split").config)


def test_view_survives_the_checkpoint() -> None:
    view = draw_view(ALL, IMAGE_SIZE, 5)
    assert msgspec.convert(msgspec.json.decode(msgspec.json.encode(msgspec.to_builtins(view))), View) == view
    assert Query.__struct_fields__[-1] == "draw"
