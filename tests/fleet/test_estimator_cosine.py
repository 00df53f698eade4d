"""The cosine benchmark on a few generated frames: what it compares, and that it ends with a picture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from benchmarks.cosine_charts import MAX_BYTES, draw
from benchmarks.cosine_study import Measurement, cosine, pooled
from benchmarks.cosine_tables import as_json, main_table, sweep_table, tabulate
from benchmarks.estimator_cosine import run
from benchmarks.joint_training import JointTraining, Study, features_gradient
from cloud_server.training.losses import cross_entropy, downsample_labels, loss_map
from datasets.catalog import open_dataset
from datasets.frame import FrameSource
from datasets.generated import GeneratorSettings, generate_dataset
from edge_client.frames import FrameCache, VehicleFrames
from fleet.export.encoders import build_encoder

STUDY = Study(
    image_size=(64, 48),
    steps=6,
    batch_size=4,
    batches=2,
    seeds=(1, 4, 16),
    swept_seeds=(1, 4),
    queries=(1, 4),
    scales=(0.1, 0.3),
    box_widths=(3, 5),
    map_strides=(1, 2),
    answers=4,
    surrogate_seeds=(1,),
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
    """Up to what 8-bit features change, which BatchNorm over the few cells of so small frames enlarges."""
    assert all(each.cosine > 0.99 for each in chosen(measurements, "white-box"))
    assert np.median([each.training_cosine for each in chosen(measurements, "split")]) > 0.9


def test_more_seeds_come_closer_and_spsa_stays_behind(measurements: list[Measurement]) -> None:
    def median(estimator: str, count: int) -> float:
        found = chosen(measurements, estimator, count=count)
        return float(np.median([each.cosine for each in found if each.subspace == "all"]))

    assert median("activation", 16) > median("activation", 1) > median("spsa-gc", 1)
    assert median("activation", 16) > 0.5


def test_bytes_are_those_of_the_messages(measurements: list[Measurement]) -> None:
    """Features once for all seeds, twice for every query of SPSA; nothing for the local head."""

    def uplink(estimator: str, **settings: object) -> float:
        return float(np.median([each.uplink_bytes for each in chosen(measurements, estimator, **settings)]))

    features, elements = uplink("white-box"), 8 * 6 * 8
    assert 0.3 * elements < features < 1.5 * elements
    assert features < uplink("activation", count=1) < uplink("activation", count=16) < features + 60
    for count in (1, 4):
        assert uplink("spsa-gc", count=count) == pytest.approx(2 * count * features, rel=0.05)
    assert {each.uplink_bytes + each.downlink_bytes for each in chosen(measurements, "local-loss")} == {0}


@pytest.mark.parametrize("mode", ["evaluation", "training"])
def test_exact_gradient_equals_autograd_through_both_networks(
    source: FrameSource, tmp_path: Path, mode: str
) -> None:
    frames = VehicleFrames(FrameCache(source, STUDY.image_size), {"train": [ref.key for ref in source.refs]})
    training = JointTraining(STUDY, frames, source.label_space, tmp_path)
    training.advance(3)
    network = training.network.train(mode == "training")
    image_BHWC, label_BHW = training.batch(range(4))
    linearised = training.encoder.linearise(training.theta, image_BHWC)
    ours = linearised.pull_back(features_gradient(network, linearised.features_BCHW, label_BHW))

    encoder = build_encoder(STUDY.encoder, seed=0).folded()
    torch.nn.utils.vector_to_parameters(torch.from_numpy(training.theta), encoder.parameters())
    logits_BKhw = network(encoder(torch.from_numpy(image_BHWC)))
    loss = cross_entropy(logits_BKhw, downsample_labels(torch.from_numpy(label_BHW), logits_BKhw.shape[-2:]))
    parts = torch.autograd.grad(loss, list(encoder.parameters()))
    expected = torch.cat([part.ravel() for part in parts]).numpy()
    # BatchNorm over the few cells of the coarsest level enlarges the rounding of the features.
    np.testing.assert_allclose(ours, expected, atol=1e-3 * np.abs(expected).max())
    assert cosine(ours, expected) > 1 - 1e-6


def test_pooled_map_is_the_map_of_coarser_cells() -> None:
    random = np.random.default_rng(0)
    logits = torch.from_numpy(random.standard_normal((2, 5, 12, 16)).astype(np.float32))
    label = torch.from_numpy(random.integers(0, 6, (2, 12, 16)).astype(np.uint8))
    label[label == 5] = 255
    fine = loss_map(logits, label, (6, 8)).numpy()
    np.testing.assert_allclose(pooled(fine, 2), loss_map(logits, label, (3, 4)).numpy(), rtol=1e-5)
    assert np.array_equal(pooled(fine, 1), fine)


def test_same_study_gives_the_same_numbers(source: FrameSource, tmp_path: Path) -> None:
    small = replace(
        STUDY,
        steps=2,
        batches=1,
        seeds=(2,),
        swept_seeds=(2,),
        queries=(1,),
        scales=(0.3,),
        box_widths=(3,),
        map_strides=(1,),
    )
    assert run(small, source, tmp_path / "one") == run(small, source, tmp_path / "other")


def test_tables_json_and_picture_are_complete(measurements: list[Measurement], tmp_path: Path) -> None:
    table = tabulate(measurements)
    lines = main_table(table, STUDY).splitlines()
    assert {line.count("|") for line in lines} == {len(STUDY.checkpoints) + 7}
    for name in ("`activation`, K = 16", "`surrogate`, K = 1"):
        [line] = [line for line in lines if line.startswith(f"| {name} |")]
        assert "–" not in line, "it has a gradient at the features, too"
    assert len(sweep_table(table, STUDY, 4, "film").splitlines()) == 2 + 2 * len(STUDY.scales)
    content = json.loads(json.dumps(as_json(table, STUDY, "generated")))
    assert all(len(row["cosine"]) == len(STUDY.checkpoints) for row in content["rows"])
    draw(table, STUDY, tmp_path / "cosine.png")
    assert (tmp_path / "cosine.png").stat().st_size < MAX_BYTES
    assert cv2.imread(str(tmp_path / "cosine.png")).std() > 10
