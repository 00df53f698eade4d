"""Seeded queries: that they equal uploads, and fleets that learn from loss maps."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fleet_fixtures import CARS, TinyFleet, World
from seeded_fixtures import CAR, again, plan, seeded, tiny
from supervision import Supervisor
from test_perturbation import grid

from cloud_server.config import ZerothOrderConfig
from cloud_server.desk.seeded_queries import coded_loss_maps, evaluate_loss_maps
from cloud_server.networks.build import build_network
from cloud_server.storage.checkpoint import flatten_state
from cloud_server.training.trainer import Trainer, TrainerConfig
from fleet.run.in_process import run_in_process
from protocol.codec.tensor import decode, encode
from protocol.perturbation import perturb
from protocol.plans.adaptation import Adaptation
from protocol.plans.coding import Coding

# That it equals an upload ------------------------------------------------------------------------------


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize(("seeds", "frames"), [(1, 9), (4, 3), (16, 1)])
@pytest.mark.parametrize(
    ("stride", "objective"), [(4, "labels"), (8, "labels"), (8, "entropy"), (16, "labels")]
)
def test_seeded_query_equals_uploading_the_perturbed_features(
    seeds: int, two_sided: bool, frames: int, stride: int, objective: str
) -> None:
    """To the bit, for every K, and nothing in the network changes: no weight, no statistic of BatchNorm.

    The features are large enough for convolutions that round differently in batches of other sizes.
    """
    shape = (4, 96 // stride, 128 // stride)
    network = build_network("compact", feature_shape=shape, feature_stride=stride, num_classes=5, seed=1)
    trainer = Trainer(network, TrainerConfig())
    random = np.random.default_rng(2)
    label = random.integers(0, 5, (frames, 96, 128), np.uint8) if objective == "labels" else None
    features = random.normal(size=(frames, *shape)).astype(np.float32)
    scale_C = (0.1 * features.std(axis=(0, 2, 3))).astype(np.float32)
    before = flatten_state(trainer.state_dict())[0]
    query = seeded(frames, seeds, scale_C, two_sided=two_sided)

    def loss_maps(copies: Iterable[np.ndarray]) -> np.ndarray:
        return trainer.loss_maps(copies, label, query.map_size)

    def uploaded(seed: int, sign: int) -> np.ndarray:
        coded = encode(perturb(features, scale_C, seed, sign=sign), 32)
        return trainer.loss_map(decode(coded, expected_shape=features.shape), label, query.map_size)

    answer = coded_loss_maps(query, features, scale_C, loss_maps, 32)
    maps = decode(answer, expected_shape=(frames, 1 + seeds, 6, 8))
    clean = trainer.loss_map(features, label, query.map_size)
    assert np.array_equal(maps[:, 0], clean)
    for number, seed in enumerate(query.seeds):
        other = uploaded(seed, -1) if two_sided else clean
        assert np.array_equal(maps[:, 1 + number], uploaded(seed, 1) - other)
        assert maps[:, 1 + number].any()
    after = flatten_state(trainer.state_dict())[0]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_all_copies_of_a_query_are_one_batch() -> None:
    """Which goes through the network in full slices, not copy by copy."""
    network = build_network("compact", feature_shape=(4, 6, 8), feature_stride=8, num_classes=5, seed=1)
    sizes: list[int] = []
    network.register_forward_hook(lambda module, arguments, output: sizes.append(len(output)))
    trainer = Trainer(network, TrainerConfig())
    query = seeded(3, 4, np.ones(4, np.float32), two_sided=True)
    label = np.zeros((3, 48, 64), np.uint8)
    maps = evaluate_loss_maps(
        query,
        grid((3, 4, 6, 8)),
        np.ones(4, np.float32),
        lambda copies: trainer.loss_maps(copies, label, query.map_size),
    )
    assert maps.shape == (3, 1 + 4, 6, 8)
    assert sizes == [8] * 4  # 9 copies of 3 frames


def test_mean_of_a_clean_map_is_the_loss() -> None:
    network = build_network("compact", feature_shape=(4, 6, 8), feature_stride=8, num_classes=5, seed=1)
    trainer = Trainer(network, TrainerConfig())
    label = np.random.default_rng(3).integers(0, 5, (2, 48, 64), np.uint8)
    label[1, :30] = 255
    maps = trainer.loss_map(grid((2, 4, 6, 8)), label, (3, 4))
    losses = trainer.evaluate_losses(grid((2, 4, 6, 8)), label)
    np.testing.assert_allclose(maps.mean(axis=(1, 2)), losses, rtol=1e-5)
    maps = trainer.loss_map(grid((2, 4, 6, 8)), None, (3, 4))
    assert maps.mean() == pytest.approx(trainer.evaluate_loss(grid((2, 4, 6, 8)), None), rel=1e-5)


def test_eight_bits_keep_each_map_to_half_a_step_of_its_own_scale() -> None:
    query = seeded(2, 3, np.ones(4, np.float32), two_sided=False)

    def loss_maps(copies: Iterable[np.ndarray]) -> np.ndarray:
        return (np.concatenate(list(copies)) ** 2).sum(axis=1) * np.float32(0.01)

    features = grid((2, 4, 6, 8))
    exact = evaluate_loss_maps(query, features, np.ones(4, np.float32), loss_maps)
    coded = coded_loss_maps(query, features, np.ones(4, np.float32), loss_maps, 8)
    assert coded.payload_bytes < exact.size + 8 * 4 + 200
    step_M = np.ptp(exact, axis=(0, 2, 3)) / 255
    error = np.abs(decode(coded, expected_shape=exact.shape) - exact)
    assert (error <= 0.501 * step_M[:, None, None] + 1e-6).all()


# Fleets that learn from loss maps ----------------------------------------------------------------------


def test_run_learns_and_says_how_much_was_answered(calm: TinyFleet) -> None:
    result = calm.result()
    assert result["mean_local_miou"] > result["initial_local_miou"]
    theta0 = calm.states(CAR).load(1).theta
    for car in CARS:
        entry = result["vehicles"][car]
        assert entry["queries"] == 2 * 2 * 2, "one for each batch, epoch and round"
        assert entry["answers_per_frame"] == 2 * (1 + 3), "clean map and differences, in each epoch"
        assert entry["rejects"] == 0
    assert not np.array_equal(calm.states(CAR).load(3).theta, theta0)


def test_state_holds_what_the_next_turn_starts_from(calm_all: TinyFleet, calm_film: TinyFleet) -> None:
    everything, film = (fleet.states(CAR).load(3).optimizer for fleet in (calm_all, calm_film))
    assert set(everything) == {"mean", "square", "steps"}
    assert film["subspace/phi"].shape == film["mean"].shape == (2 * (16 + 32 + 4),)


_POINTS = [("car-1", "seeded", 1), ("car-1", "maps", 3), ("car-2", "seeded", 3), ("car-2", "done", 2)]


def test_killed_processes_change_nothing(calm: TinyFleet, tmp_path: Path) -> None:
    fleet = again(calm, tmp_path)
    supervisor, points = Supervisor(fleet), set(_POINTS)
    supervisor.run_with_kills(points)
    assert fleet.fingerprint() == calm.fingerprint()
    for car in CARS:
        for name in ("queries", "answers_per_frame"):
            assert fleet.result()["vehicles"][car][name] == calm.result()["vehicles"][car][name]


@pytest.mark.parametrize(
    "changes",
    [
        {"activation": plan(two_sided=True, map_stride=2, box_width=3)},
        {"activation": plan(map_bits=32), "feedback_network": "best", "coding": Coding(bits=32),
         "algorithm": "blackfed-v2"},
        {"zeroth_order": ZerothOrderConfig(batches=2, batch_size=3),
         "adaptation": Adaptation(subspace="film")},
    ],
    ids=["two-sided on a coarse map", "v2, own feedback, float32", "spsa-gc on film"],
)  # fmt: skip
def test_other_settings_run(changes: dict[str, Any], tiny_world: World, tmp_path: Path) -> None:
    fleet = tiny(tiny_world, tmp_path, rounds=1, **changes)
    run_in_process(fleet.config, [fleet.host()], fleet.run_folder)
    result = fleet.result()
    asked = fleet.config.answers_per_frame
    assert [entry["answers_per_frame"] for entry in result["vehicles"].values()] == [asked] * len(CARS)
    assert result["mean_local_miou"] > result["initial_local_miou"]
