"""Rounds that do not wait for everyone: first come, deadlines, contributions in a buffer; in virtual time."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federated_fixtures import ONE_STEP, SGD, FederatedFleet
from fleet_fixtures import CARS, FLEET, TinyFleet
from fleet_fixtures import World as Frames
from supervision import Supervisor

from cloud_server.training.averages import LocalUpdate
from cloud_server.training.staleness import caught_up
from fleet.run.deadline import check_deadline
from fleet.run.in_process import run_in_process
from fleet.scenario import load_scenario
from fleet.simulation.settings import SimulationPart
from fleet.simulation.world import World
from protocol.errors import BlackfleetError
from protocol.plans.late import Late
from protocol.plans.local_loss import LocalLossPlan

_FACTOR = 3
_DEVICES = {
    name: {"forward_ms": 10.0 * times, "vjp_ms": 40.0 * times, "codec_ms": 1.0 * times, "network_ms": 5.0}
    for name, times in (("fast", 1), ("slow", _FACTOR))
}


def simulation(folder: Path) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    profiles = folder / "profiles.yaml"
    profiles.write_text(json.dumps({"devices": _DEVICES}))
    return {"time": "virtual", "profile": "fast:1,slow:1", "profiles": str(profiles)}


def run(fleet: TinyFleet) -> World:
    """One vehicle computes three times as fast as the other."""
    world = World(SimulationPart(**simulation(fleet.folder)), fleet=FLEET, vehicles=CARS, seed=0)
    run_in_process(fleet.config, [fleet.host()], fleet.run_folder, world=world)
    return world


def federated(frames: Frames, folder: Path, **changes: Any) -> FederatedFleet:
    return FederatedFleet(frames, folder, **{"first_order": ONE_STEP, "federated": SGD, **changes})


def with_local_loss(frames: Frames, folder: Path, **changes: Any) -> TinyFleet:
    plan = LocalLossPlan(warm_up_epochs=2, epochs=1)
    return TinyFleet(
        frames, folder, **{"algorithm": "blackfleet", "local_loss": plan, "parallel_turns": 2, **changes}
    )


def of(world: World, device: str) -> str:
    [vehicle] = [name for name, own in world.devices.items() if own == device]
    return vehicle


def trained(fleet: TinyFleet) -> list[tuple[int, str]]:
    """Round and vehicle of each turn that counted in it."""
    return [(line["round"], line["vehicle"]) for line in fleet.events("turn_done") if line["kind"] == "train"]


@pytest.mark.parametrize("build", [federated, with_local_loss])
def test_async_rounds_wait_for_nobody_and_end_alike_with_the_same_seed(
    build: Any, tiny_world: Frames, tmp_path: Path
) -> None:
    first, second = (
        build(tiny_world, tmp_path / name, participation="async:1", rounds=6) for name in ("first", "second")
    )
    world = run(first)
    run(second)
    assert first.fingerprint() == second.fingerprint()
    assert first.scores() == second.scores()
    assert first.result()["virtual_s"] == second.result()["virtual_s"]
    turns = trained(first)
    assert [number for number, _ in turns] == list(range(1, 7))
    counts = Counter(vehicle for _, vehicle in turns)
    assert counts[of(world, "fast")] > counts[of(world, "slow")] >= 1
    behind = [line["behind"] for line in first.events("turn_done") if "behind" in line]
    assert max(behind) >= 2 and behind.count(0) > len(behind) / 2
    for vehicle in first.result()["vehicles"].values():
        assert vehicle["uploads"]["repeated"] == 0
        assert vehicle["uploads"]["trained"] == vehicle["uploads"]["acknowledged"]


def test_round_of_the_first_drops_the_work_of_the_others_who_go_on(
    tiny_world: Frames, tmp_path: Path
) -> None:
    fleet = with_local_loss(tiny_world, tmp_path, participation="first:1/2", rounds=3)
    world = run(fleet)
    assert trained(fleet) == [(number, of(world, "fast")) for number in (1, 2, 3)]
    dropped = [(line["round"], line["vehicle"]) for line in fleet.events("dropped")]
    assert dropped == [(number, of(world, "slow")) for number in (1, 2, 3)]
    late = fleet.result()["vehicles"][of(world, "slow")]
    assert late["local_miou"] is not None, "it was there for the evaluation"
    assert late["uploads"]["acknowledged"] == 0
    assert late["rejects"] == 0, "it has heard that its turns were over, and sent nothing more in them"


@pytest.mark.parametrize("work", ["drop", "keep"])
def test_deadline_ends_a_round_and_late_work_counts_in_the_round_in_which_it_is_done(
    work: str, tiny_world: Frames, tmp_path: Path
) -> None:
    late, plan = Late(deadline_s=0.05, work=work), LocalLossPlan(warm_up_epochs=0, epochs=1)
    fleet = with_local_loss(tiny_world, tmp_path, late=late, local_loss=plan, rounds=3)
    world = run(fleet)
    slow = of(world, "slow")
    behind = [line["behind"] for line in fleet.events("turn_done") if "behind" in line]
    counted = [number for number, vehicle in trained(fleet) if vehicle == slow]
    assert len([1 for _, vehicle in trained(fleet) if vehicle != slow]) == 3
    if work == "keep":
        assert max(behind) >= 1
        assert counted and counted[0] > 1
    else:
        assert not counted and {line["vehicle"] for line in fleet.events("dropped")} == {slow}


def test_deadline_that_no_vehicle_can_keep_is_one_line(tiny_world: Frames, tmp_path: Path) -> None:
    part = simulation(tmp_path)
    world = World(SimulationPart(**part), fleet=FLEET, vehicles=CARS, seed=0)
    fleet = with_local_loss(tiny_world, tmp_path)

    def check(deadline_s: float) -> None:
        scenario = load_scenario(None, {"simulation": part, "late": {"deadline_s": deadline_s}})
        check_deadline(scenario, [fleet.host()], world)

    check(1000.0)
    with pytest.raises(
        BlackfleetError, match=r"^late.deadline_s 0.01 is shorter than any [^\n]* \(fast\)[^\n]*$"
    ):
        check(0.01)


def test_kills_between_async_rounds_train_no_upload_twice(tiny_world: Frames, tmp_path: Path) -> None:
    """In real time; the run goes on from its last commit, turns that spanned it begin anew."""
    fleet = with_local_loss(tiny_world, tmp_path, participation="async:1", rounds=5)
    supervisor = Supervisor(fleet)
    points = {("car-1", "done", 2), ("car-2", "done", 3), ("car-1", "upload", 7)}
    supervisor.kill_at(points, of_the_cloud={("car-1", "done", 2), ("car-2", "done", 3)})
    supervisor.run()
    assert len(supervisor.kills) >= 2
    assert trained(fleet)[-1][0] == 5
    for vehicle in fleet.result()["vehicles"].values():
        assert vehicle["uploads"]["repeated"] == 0
        assert vehicle["uploads"]["trained"] == vehicle["uploads"]["acknowledged"]


def test_late_update_counts_less_and_variances_stay_positive() -> None:
    begun = {"w": np.float32([1, 2]), "bn.running_var": np.float32([5])}
    now = {"w": np.float32([3, 3]), "bn.running_var": np.float32([1])}
    sent = {"w": np.float32([2, 0]), "bn.running_var": np.float32([0.5])}
    update = LocalUpdate(samples=4, loss=0.5, weights=sent)
    late = caught_up(update, begun, now, 3, {"bn.running_var"}).weights
    np.testing.assert_allclose(late["w"], [3 + 0.5, 3 - 1])
    np.testing.assert_allclose(late["bn.running_var"], [0.75])
