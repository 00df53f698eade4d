"""Whole tiny fleets that learn by the estimator `surrogate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fleet_fixtures import CARS, TinyFleet, World
from seeded_fixtures import CAR, tiny, zeroth
from supervision import Supervisor

from cloud_server.config import NetworkConfig
from cloud_server.errors import CloudError
from evaluation.latest import read_latest
from fleet.run.in_process import run_in_process
from protocol.plans.adaptation import Adaptation
from protocol.plans.surrogate import SurrogatePlan


def fleet_of(world: World, folder: Path, **changes: Any) -> TinyFleet:
    """Two rounds, film, with replay: all that a turn starts from matters."""
    plan = SurrogatePlan(rate=1e-2, block=2, replay_frames=6, fit_steps=2)
    settings = {
        "zeroth_order": zeroth(epochs=2, estimator="surrogate"),
        "surrogate": plan,
        "adaptation": Adaptation(subspace="film"),
    }
    return tiny(world, folder, **{**settings, **changes})


@pytest.fixture(scope="module")
def calm(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> TinyFleet:
    fleet = fleet_of(tiny_world, tmp_path_factory.mktemp("surrogate"))
    Supervisor(fleet).run()
    return fleet


def test_run_learns_encoder_and_head_and_says_how_much_was_answered(calm: TinyFleet) -> None:
    result = calm.result()
    assert result["mean_local_miou"] > result["initial_local_miou"]
    first, second = (calm.states(CAR).load(turn).optimizer for turn in (1, 3))
    for name in ("surrogate/parameters", "surrogate/adam/mean", "encoder/subspace/phi"):
        assert not np.array_equal(first[name], second[name])
    for car in CARS:
        assert result["vehicles"][car]["answers_per_frame"] == 2 * (1 + 1)
        assert [latest.split for latest in read_latest(calm.run_folder, car)] == ["val", "train"]


def test_killed_processes_change_nothing(calm: TinyFleet, tiny_world: World, tmp_path: Path) -> None:
    fleet = fleet_of(tiny_world, tmp_path)
    points = {("car-1", "seeded", 1), ("car-1", "maps", 3), ("car-2", "seeded", 3), ("car-2", "done", 2)}
    Supervisor(fleet).run_with_kills(points)
    assert fleet.fingerprint() == calm.fingerprint()


def test_unlabelled_frames_and_a_network_that_stays(tiny_world: World, tmp_path: Path) -> None:
    fleet = fleet_of(
        tiny_world,
        tmp_path,
        rounds=1,
        algorithm="blackfed-v2",
        adaptation=Adaptation(objective="entropy"),
        network=NetworkConfig(learns=False),
        surrogate=SurrogatePlan(rate=1e-2, two_sided=True, seeds=2, map_stride=2, correction=0.5),
    )
    run_in_process(fleet.config, [fleet.host()], fleet.run_folder)
    assert all(vehicle["rejects"] == 0 for vehicle in fleet.result()["vehicles"].values())


def test_head_of_local_losses_is_refused(tiny_world: World, tmp_path: Path) -> None:
    """Its normalisation would hide from it what has shifted."""
    fleet = fleet_of(tiny_world, tmp_path, rounds=1)
    host = fleet.host()
    vehicles = tuple(
        msgspec.structs.replace(vehicle, local_head=str(tiny_world.local_head)) for vehicle in host.vehicles
    )
    with pytest.raises(CloudError, match="a local head whose normalisation is not fixed"):
        run_in_process(fleet.config, [msgspec.structs.replace(host, vehicles=vehicles)], fleet.run_folder)
