"""Vehicles that lie, among honest ones that differ, as the cloud's algorithms learn from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cloud_server.algorithms.base import Context
from cloud_server.algorithms.quarantine import cohens_kappa
from cloud_server.algorithms.table import build_algorithm
from cloud_server.config import CloudConfig, NetworkConfig
from cloud_server.desk.ledger import UploadLedger
from cloud_server.desk.turns import Features
from cloud_server.events import Events, Recorder
from cloud_server.networks.stems import build_shared_network
from cloud_server.run.combinations import check_combination
from cloud_server.schedule import Kind, Stage
from cloud_server.storage.label_store import LabelStore
from cloud_server.training.trainer import Trainer, TrainerConfig
from datasets.labels import CAMVID
from protocol.codec.labels import content_hash, encode_label
from protocol.errors import SettingError
from protocol.plans.first_order import FirstOrder
from protocol.plans.trust import Trust

CARS = tuple(f"car-{number}" for number in range(1, 5))
LIAR = CARS[3]
SHAPE, SIZE = (8, 8, 8), (64, 64)
TRAIN, VAL = 12, 2
ROUNDS = 2
LEAVE_OUT = Trust(quarantine="leave-out")


class Told(Recorder):
    """Names of events, with their vehicles."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Mapping[str, Any]]] = []

    def event(self, name: str, values: Mapping[str, Any]) -> None:
        self.events.append((name, values))


class Town:
    """Scenes whose features tell their classes, and the algorithm that learns from what vehicles send."""

    def __init__(self, folder: Path, algorithm: str, trust: Trust, lie: str = "") -> None:
        self.told = Told()
        self.config = CloudConfig(
            fleet="town",
            vehicles=CARS,
            algorithm=algorithm,
            rounds=ROUNDS,
            dataset="camvid",
            label_space="camvid",
            first_order=FirstOrder(epochs=6, batch_size=4, rate=1e-2),
            trust=trust,
        )
        labels = LabelStore(folder / "labels", num_classes=CAMVID.num_classes)
        self.drive = {car: _drive(labels, car, lie if car == LIAR else "") for car in CARS}
        network = build_shared_network(
            "compact", feature_shapes=[SHAPE], image_size=SIZE, num_classes=CAMVID.num_classes, seed=0
        )
        self.trainer = Trainer(network, TrainerConfig(rate=1e-2, seed=1))
        context = Context(
            config=self.config,
            label_space=CAMVID,
            trainer=self.trainer,
            labels=labels,
            events=Events(self.told),
            run_folder=folder,
            check_stop=lambda: None,
            train_frames=dict.fromkeys(CARS, TRAIN),
            ledger=UploadLedger(),
            source_frames=dict.fromkeys(CARS, 0),
        )
        self.algorithm: Any = build_algorithm(algorithm, context)

    @property
    def stages(self) -> list[Stage]:
        return [stage for stage in self.algorithm.stages if stage.kind is Kind.TRAIN]

    def do(self, stage: Stage) -> None:
        for car in stage.vehicles:
            self.algorithm.begin(stage, car)
            uploads = self.drive[car]
            if self.config.algorithm == "split":
                for _ in range(self.config.first_order.epochs):
                    for batch in _batches(uploads["train"]):
                        self.algorithm.train_step(car, batch)
            self.algorithm.turn_done(stage, car, uploads)
        self.algorithm.stage_done(stage)
        self.algorithm.stage_kept()
        self.algorithm.committed()

    def run(self) -> dict[str, int]:
        """To its end; how often whom was left out."""
        for stage in self.stages:
            self.do(stage)
        left_out: dict[str, int] = self.algorithm.progress.left_out
        return left_out


def _batches(train: Features) -> Iterator[Features]:
    for start in range(0, TRAIN, 4):
        chosen = slice(start, start + 4)
        yield Features(indices=train.indices[chosen], features_BCHW=train.features_BCHW[chosen])


def _drive(labels: LabelStore, car: str, lie: str) -> dict[str, Features]:
    """Each car has a camera of its own, and a class that the others never see."""
    number = CARS.index(car)
    random = np.random.default_rng(number)
    looks_KC = np.random.default_rng(99).standard_normal((CAMVID.num_classes, SHAPE[0])).astype(np.float32)
    shares_K = np.zeros(CAMVID.num_classes)
    shares_K[:3], shares_K[3 + number] = 0.25, 0.25
    frames, named = [], []
    for _ in range(TRAIN + VAL):
        label_hw = random.choice(CAMVID.num_classes, p=shares_K, size=SHAPE[1:])
        noise_hwC = 0.2 * random.standard_normal((*SHAPE[1:], SHAPE[0]))
        frames.append((looks_KC[label_hw] + noise_hwC + 0.1 * number).transpose(2, 0, 1).astype(np.float32))
        named.append(np.kron(label_hw, np.ones((8, 8))).astype(np.uint8))
    features_BCHW = np.stack(frames)
    if lie == "noise":
        features_BCHW = random.standard_normal(features_BCHW.shape, dtype=np.float32)
    if lie == "replay":
        features_BCHW = np.repeat(features_BCHW[:1], len(features_BCHW), axis=0)
    if lie == "labels":
        named[:TRAIN] = [((label_HW + 5) % CAMVID.num_classes).astype(np.uint8) for label_HW in named[:TRAIN]]
    for index, label_HW in enumerate(named):
        digest, coded = content_hash(label_HW), encode_label(label_HW)
        height, width = label_HW.shape
        labels.add(car, index, f"{car}-{index}", digest, coded, height=height, width=width)
    indices = tuple(range(TRAIN + VAL))
    return {
        "train": Features(indices=indices[:TRAIN], features_BCHW=features_BCHW[:TRAIN]),
        "val": Features(indices=indices[TRAIN:], features_BCHW=features_BCHW[TRAIN:]),
    }


def _same(one: Town, other: Town) -> bool:
    weights = [town.trainer.weights() for town in (one, other)]
    return all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.fixture(scope="module")
def lying(tmp_path_factory: pytest.TempPathFactory) -> Town:
    """A run of which one vehicle was left out."""
    town = Town(tmp_path_factory.mktemp("lying"), "blackfed-v2", LEAVE_OUT, "labels")
    assert town.run() == {LIAR: ROUNDS}
    return town


def test_nobody_is_left_out_of_an_honest_fleet_of_cars_that_differ(tmp_path: Path) -> None:
    assert Town(tmp_path, "blackfed-v2", LEAVE_OUT).run() == {}


@pytest.mark.parametrize(
    ("algorithm", "lie"),
    [("split", "noise"), ("blackfleet", "labels"), ("blackfleet", "noise"), ("blackfed-v2", "replay")],
)
def test_liar_is_left_out_and_nobody_else_is(algorithm: str, lie: str, tmp_path: Path) -> None:
    town = Town(tmp_path, algorithm, LEAVE_OUT, lie)
    assert town.run() == {LIAR: ROUNDS}
    assert {values["vehicle"] for name, values in town.told.events if name == "left-out"} == {LIAR}


def test_watching_tells_and_changes_nothing(tmp_path: Path) -> None:
    watching, trusting = (
        Town(tmp_path / how, "split", Trust(quarantine=how), "labels") for how in ("watch", "none")
    )
    for town in (watching, trusting):
        for stage in town.stages[: len(CARS)]:
            town.do(stage)
    assert watching.algorithm.progress.doubted == {LIAR: 1}
    assert watching.algorithm.progress.left_out == trusting.algorithm.progress.doubted == {}
    assert _same(watching, trusting)


def test_resumed_run_leaves_out_the_same_turns(lying: Town, tmp_path: Path) -> None:
    begun, resumed = (Town(tmp_path, "blackfed-v2", LEAVE_OUT, "labels") for _ in range(2))
    middle = len(CARS) + 1
    for stage in begun.stages[:middle]:
        begun.do(stage)
    resumed.algorithm.restore(begun.algorithm.tensors(), begun.algorithm.meta())
    for stage in resumed.stages[middle:]:
        resumed.do(stage)
    assert resumed.algorithm.progress.left_out == {LIAR: ROUNDS}
    assert _same(resumed, lying)


def test_kappa_is_none_by_chance_and_whole_where_all_agree() -> None:
    assert cohens_kappa(np.array([[25, 25], [25, 25]])) == 0
    assert cohens_kappa(np.array([[30, 0], [0, 70]])) == 1
    assert cohens_kappa(np.array([[0, 50], [50, 0]])) == -1
    assert cohens_kappa(np.array([[45, 15], [25, 15]])) == pytest.approx(0.1304, abs=1e-4)
    assert cohens_kappa(np.zeros((2, 2), np.int64)) == cohens_kappa(np.array([[9, 0], [0, 0]])) == 0


@pytest.mark.parametrize("algorithm", ["fedavg", "individual", "splitfed-v1", "cse-fsl"])
def test_algorithms_that_can_not_tell_refuse_the_setting(algorithm: str) -> None:
    config = CloudConfig(fleet="town", vehicles=CARS, algorithm=algorithm, dataset="camvid", trust=LEAVE_OUT)
    with pytest.raises(SettingError, match=f"trust.quarantine leave-out is for .*, got {algorithm}"):
        check_combination(config)


def test_network_that_stays_learns_from_no_liar() -> None:
    network = NetworkConfig(learns=False)
    config = CloudConfig(
        fleet="town", vehicles=CARS, algorithm="split", dataset="camvid", trust=LEAVE_OUT, network=network
    )
    with pytest.raises(SettingError, match="is false: set it to none"):
        check_combination(config)
