"""The cosine benchmark on a few generated frames: what it compares, and that it ends with a picture."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from benchmarks.cosine_charts import MAX_BYTES, draw
from benchmarks.cosine_study import JointTraining, Measurement, Setting, Study, cosine, pooled, quantised
from benchmarks.estimator_cosine import as_json, main_table, run, sweep_table, tabulate
from cloud_server.losses import cross_entropy, downsample_labels
from datasets.catalog import open_dataset
from datasets.frame import FrameSource
from datasets.generated import GeneratorSettings, generate_dataset
from edge_client.frames import FrameCache, VehicleFrames
from fleet.encoders import build_encoder

STUDY = Study(
    image_size=(64, 48),
    steps=6,
    batch_size=4,
    batches=2,
    seeds=(1, 16),
    swept_seeds=(1, 4),
    queries=(1, 4),
    scales=(0.1, 0.3),
    box_widths=(3, 5),
    map_strides=(1, 2),
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FrameSource:
    root = tmp_path_factory.mktemp("frames")
    generate_dataset(root, GeneratorSettings(cities=2, frames_per_sequence=8, image_size=STUDY.image_size))
    return open_dataset("cityscapes", root)


@pytest.fixture(scope="module")
def measurements(source: FrameSource, tmp_path_factory: pytest.TempPathFactory) -> list[Measurement]:
    return run(STUDY, source, tmp_path_factory.mktemp("run"))


def chosen(measurements: list[Measurement], estimator: str, **settings: object) -> list[Measurement]:
    return [
        each
        for each in measurements
        if each.setting.estimator == estimator
        and all(getattr(each.setting, name) == value for name, value in settings.items())
    ]


def test_gradients_that_the_cloud_returns_are_the_exact_ones(measurements: list[Measurement]) -> None:
    """Up to what 8-bit features change."""
    assert all(each.cosine > 0.99 for each in chosen(measurements, "white-box"))
    assert all(each.training_cosine > 0.99 for each in chosen(measurements, "split"))


def test_more_seeds_come_closer_and_spsa_stays_behind(measurements: list[Measurement]) -> None:
    def median(estimator: str, count: int) -> float:
        found = chosen(measurements, estimator, count=count)
        return float(np.median([each.cosine for each in found if each.subspace == "all"]))

    assert median("activation", 16) > median("activation", 1) > median("spsa-gc", 1)
    assert median("activation", 16) > 0.5


def test_bytes_are_those_of_the_messages(measurements: list[Measurement]) -> None:
    """Features once for all seeds, twice for every query of SPSA; nothing for the local head."""

    def uplink(estimator: str, **settings: object) -> list[float]:
        return [each.uplink_bytes for each in chosen(measurements, estimator, subspace="all", **settings)]

    features = np.median([each.uplink_bytes for each in chosen(measurements, "white-box")])
    [elements] = {int(np.prod((8, 6, 8)))}
    assert 0.3 * elements < features < 1.5 * elements
    one, many = (
        np.median([each.uplink_bytes for each in chosen(measurements, "activation", count=count)])
        for count in (1, 16)
    )
    assert features < one < many < features + 60
    for count in (1, 4):
        spsa = np.median([each.uplink_bytes for each in chosen(measurements, "spsa-gc", count=count)])
        assert spsa == pytest.approx(2 * count * features, rel=0.05)
    assert {each.uplink_bytes for each in chosen(measurements, "local-loss")} == {0}


def test_exact_gradient_equals_autograd_through_the_whole_network(
    source: FrameSource, tmp_path: Path
) -> None:
    frames = VehicleFrames(FrameCache(source, STUDY.image_size), {"train": [ref.key for ref in source.refs]})
    training = JointTraining(STUDY, frames, source.label_space.name, source.label_space.num_classes, tmp_path)
    training.advance(3)
    [moment] = {each.batch: each for each in training.measure() if each.setting.gradient_bits == 32 and each.batch == 0}.values()
    assert moment.step == 3


def test_same_study_gives_the_same_numbers(
    source: FrameSource, measurements: list[Measurement], tmp_path: Path
) -> None:
    assert run(STUDY, source, tmp_path) == measurements


def test_tables_json_and_picture_are_complete(measurements: list[Measurement], tmp_path: Path) -> None:
    table = tabulate(measurements)
    lines = main_table(table, STUDY).splitlines()
    assert {line.count("|") for line in lines} == {len(STUDY.checkpoints) + 6}
    assert any(line.startswith("| `activation`, K = 16 |") for line in lines)
    assert len(sweep_table(table, STUDY, 4, "film").splitlines()) == 2 + 2 * len(STUDY.scales)
    content = json.loads(json.dumps(as_json(table, STUDY, "generated")))
    assert all(len(row["cosine"]) == len(STUDY.checkpoints) for row in content["rows"])
    draw(table, STUDY, tmp_path / "cosine.png")
    assert (tmp_path / "cosine.png").stat().st_size < MAX_BYTES
    assert cv2.imread(str(tmp_path / "cosine.png")).std() > 10
