"""Which weights predict for a vehicle of blackfleet: its best, the latest, or those with its statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fleet_fixtures import CARS, TinyFleet, World
from supervision import Supervisor
from test_local_loss import fleet_of, run

from benchmarks.serving_scores import score_servings
from cloud_server.storage.checkpoint import load_checkpoint
from protocol.plans.blackfleet import SERVINGS, BlackFleetSettings


def serving_fleet(world: World, folder: Path, serving: str) -> TinyFleet:
    """Three rounds, so that the best weights need not be the latest."""
    return fleet_of(world, folder, rounds=3, blackfleet=BlackFleetSettings(serving=serving))


@pytest.fixture(scope="module")
def fleets(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TinyFleet]:
    """An undisturbed run of each kind."""
    return {
        serving: run(serving_fleet(tiny_world, tmp_path_factory.mktemp(serving), serving))
        for serving in SERVINGS
    }


def network_of(fleet: TinyFleet) -> dict[str, torch.Tensor]:
    tensors, _ = load_checkpoint(fleet.run_folder / "cloud" / "checkpoints")
    return {name: tensor for name, tensor in tensors.items() if name.startswith("/network/")}


def test_training_does_not_depend_on_serving(fleets: dict[str, TinyFleet]) -> None:
    expected = network_of(fleets["best"])
    for fleet in fleets.values():
        found = network_of(fleet)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        for car in CARS:
            assert np.array_equal(fleet.states(car).load(3).theta, fleets["best"].states(car).load(3).theta)


def test_latest_weights_are_scored_as_they_are(fleets: dict[str, TinyFleet]) -> None:
    latest, best = (fleets[serving].events("validation") for serving in ("latest", "best"))
    assert [event["best"] for event in latest] == [event["miou"] for event in best]
    assert not list(fleets["latest"].run_folder.glob("cloud/*/*/*.safetensors"))


def test_statistics_are_each_vehicle_s_own_and_nothing_else_is_kept(fleets: dict[str, TinyFleet]) -> None:
    kept = [fleets["statistics"].kept("statistics", car, 3) for car in CARS]
    shared = network_of(fleets["statistics"])
    names = {
        name.removeprefix("/network/") for name in shared if name.endswith(("running_mean", "running_var"))
    }
    assert names and kept[0].keys() == kept[1].keys() == names
    for name in names:
        assert not torch.equal(kept[0][name], kept[1][name])
        assert not torch.equal(kept[0][name], shared[f"/network/{name}"])


def test_a_vehicle_s_own_statistics_change_what_is_predicted(fleets: dict[str, TinyFleet]) -> None:
    latest, statistics = (fleets[serving].result()["confusion"] for serving in ("latest", "statistics"))
    assert latest != statistics


def test_scores_found_out_afterwards_are_those_of_runs_with_that_serving(
    fleets: dict[str, TinyFleet],
) -> None:
    """From the run that served the best weights, for all three."""
    best = fleets["best"]
    found = score_servings(best.config, [best.host()], best.run_folder)
    for serving, fleet in fleets.items():
        result, curve = fleet.result(), fleet.events("curve")
        assert found[serving] == {
            "val": curve[-1]["val_miou"],
            "test": result["mean_local_miou"],
            "ood": result["mean_ood_miou"],
        }


def test_killed_processes_change_nothing(fleets: dict[str, TinyFleet], tmp_path: Path) -> None:
    calm = fleets["statistics"]
    points = {(CARS[0], "done", 2), (CARS[1], "turn", 4), (CARS[1], "upload", 12), (CARS[0], "turn", 5)}
    supervisor = Supervisor(serving_fleet(calm.world, tmp_path, "statistics"))
    supervisor.run_with_kills(points)
    assert supervisor.fleet.fingerprint() == calm.fingerprint()
    names = ("mean_local_miou", "mean_ood_miou", "confusion")
    results = [fleet.result() for fleet in (supervisor.fleet, calm)]
    assert [results[0][name] for name in names] == [results[1][name] for name in names]


def test_unknown_serving_is_named() -> None:
    with pytest.raises(ValueError, match=r"blackfleet.serving must be one of best, .*, got 'newest'"):
        BlackFleetSettings(serving="newest")
