"""Moved queries, and whole tiny fleets that learn by the estimator `region-spsa`."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fleet_fixtures import CARS, TinyFleet, World
from seeded_fixtures import CAR, tiny, zeroth
from supervision import Supervisor
from test_perturbation import grid

from cloud_server.config import NetworkConfig
from cloud_server.desk.moved_queries import checked_moves, coded_moved_maps
from cloud_server.errors import RequestError
from cloud_server.networks.build import build_network
from cloud_server.training.trainer import Trainer, TrainerConfig
from fleet.run.in_process import run_in_process
from protocol.codec.tensor import CodecError, decode, encode
from protocol.messages import MovedQuery
from protocol.plans.activation import ActivationPlan
from protocol.plans.adaptation import Adaptation
from protocol.plans.region_spsa import RegionSpsaPlan
from protocol.plans.surrogate import SurrogatePlan

PLAN = RegionSpsaPlan(rate=1e-2, region=4, map_stride=2, moves=2)


def moved(moves: Iterable[np.ndarray], **changes: Any) -> MovedQuery:
    fields = {
        "frames": (0, 1),
        "features": encode(grid((2, 4, 6, 8)), 8),
        "moves": tuple(encode(move, 32) for move in moves),
        "map_size": (3, 4),
    }
    return MovedQuery(vehicle=CAR, grant="0" * 16, turn_id=1, step=0, **{**fields, **changes})


def test_moved_query_equals_uploading_the_moved_features() -> None:
    """To the bit."""
    network = build_network("compact", feature_shape=(4, 6, 8), feature_stride=8, num_classes=5, seed=1)
    trainer = Trainer(network, TrainerConfig())
    random = np.random.default_rng(2)
    label = random.integers(0, 5, (2, 48, 64), np.uint8)
    features, *moves = random.standard_normal((3, 2, 4, 6, 8)).astype(np.float32)
    query = moved(moves)

    def uploaded(copy: np.ndarray) -> np.ndarray:
        return trainer.loss_map(copy, label, query.map_size)

    coded = coded_moved_maps(
        query,
        features,
        checked_moves(query, PLAN, features.shape),
        lambda copies: trainer.loss_maps(copies, label, query.map_size),
        32,
    )
    maps = decode(coded, expected_shape=(2, 3, 3, 4))
    assert np.array_equal(maps[:, 0], uploaded(features))
    for number, move in enumerate(moves, start=1):
        assert np.array_equal(maps[:, number], uploaded(features + move) - uploaded(features - move))


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (moved([grid((2, 4, 6, 8))]), "this turn's queries have 2 moves, got 1"),
        (moved([grid((2, 4, 6, 8))] * 2, map_size=(6, 8)), "this turn's loss maps are 3x4, got 6x8"),
        (moved([grid((2, 4, 6, 8)), grid((2, 4, 6, 4))]), "tensor shape must be 2x4x6x8, got 2x4x6x4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_query_beyond_the_plan_is_refused(query: MovedQuery, reason: str) -> None:
    with pytest.raises((RequestError, CodecError), match=reason):
        checked_moves(query, PLAN, (2, 4, 6, 8))


def fleet_of(world: World, folder: Path, **changes: Any) -> TinyFleet:
    """Film, on encoders that have no way back."""
    bundle = shutil.copytree(world.bundle, folder / "bundle")
    description = json.loads((bundle / "encoder.json").read_text())
    graphs = description["graphs"]
    description["graphs"] = {name: graphs[name] for name in ("forward", "forward_bound")}
    (bundle / "encoder.json").write_text(json.dumps(description))
    settings = {
        "zeroth_order": zeroth(epochs=2, estimator="region-spsa"),
        "region_spsa": PLAN,
        "adaptation": Adaptation(subspace="film"),
    }
    return tiny(dataclasses.replace(world, bundle=bundle), folder / "run", **{**settings, **changes})


@pytest.fixture(scope="module")
def calm(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> TinyFleet:
    fleet = fleet_of(tiny_world, tmp_path_factory.mktemp("regions"))
    Supervisor(fleet).run()
    return fleet


def test_run_learns_by_forward_passes_and_says_how_much_was_answered(calm: TinyFleet) -> None:
    result = calm.result()
    assert result["mean_local_miou"] > result["initial_local_miou"]
    for car in CARS:
        vehicle = result["vehicles"][car]
        assert vehicle["answers_per_frame"] == 2 * (1 + PLAN.moves)
        assert vehicle["rejects"] == 0
    first, second = (calm.states(CAR).load(turn).optimizer for turn in (1, 3))
    for name in ("subspace/phi", "mean"):
        assert not np.array_equal(first[name], second[name])


def test_killed_processes_change_nothing(calm: TinyFleet, tiny_world: World, tmp_path: Path) -> None:
    fleet = fleet_of(tiny_world, tmp_path)
    points = {("car-1", "moved", 1), ("car-1", "maps", 3), ("car-2", "moved", 3), ("car-2", "done", 2)}
    Supervisor(fleet).run_with_kills(points)
    assert fleet.fingerprint() == calm.fingerprint()


def test_all_weights_unlabelled_frames_and_a_network_that_stays(tiny_world: World, tmp_path: Path) -> None:
    fleet = fleet_of(
        tiny_world,
        tmp_path,
        rounds=1,
        algorithm="blackfed-v2",
        adaptation=Adaptation(objective="entropy"),
        network=NetworkConfig(learns=False),
        region_spsa=RegionSpsaPlan(region=3, map_stride=1, margin=1, map_bits=32),
    )
    run_in_process(fleet.config, [fleet.host()], fleet.run_folder)
    assert all(vehicle["rejects"] == 0 for vehicle in fleet.result()["vehicles"].values())


@pytest.mark.parametrize("estimator", ["activation", "surrogate"])
def test_loss_maps_teach_without_a_way_back(estimator: str, tiny_world: World, tmp_path: Path) -> None:
    """Forward passes in its place; as many as there are directions lead where the VJP leads."""
    plan = {"activation": ActivationPlan, "surrogate": SurrogatePlan}[estimator]
    means = []
    for passes in (0, 128):  # of 104 numbers that learn
        folder = tmp_path / str(passes)
        changes = {
            "rounds": 1,
            "zeroth_order": zeroth(estimator=estimator, batches=1),
            estimator: plan(rate=1e-2, forward_passes=passes, forward_distance=1e-3),
        }
        if passes == 0:
            fleet = tiny(tiny_world, folder, adaptation=Adaptation(subspace="film"), **changes)
        else:
            folder.mkdir()
            fleet = fleet_of(tiny_world, folder, **changes)
        run_in_process(fleet.config, [fleet.host()], fleet.run_folder)
        means.append(fleet.states(CAR).load(1).optimizer)
    name = next(name for name in means[0] if name in ("mean", "encoder/mean"))
    exact, found = (state[name].astype(np.float64) for state in means)
    assert exact @ found > 0.9 * np.sqrt((exact @ exact) * (found @ found))
