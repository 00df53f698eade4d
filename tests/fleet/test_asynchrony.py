"""Rounds that do not wait for everyone: first come, deadlines, contributions in a buffer; in virtual time."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from federated_fixtures import ONE_STEP, SGD, FederatedFleet
from fleet_fixtures import CARS, FLEET, TinyFleet
from fleet_fixtures import World as Frames

from fleet.run.in_process import run_in_process
from fleet.simulation.settings import SimulationPart
from fleet.simulation.world import World
from protocol.plans.local_loss import LocalLossPlan

_FACTOR = 3
_DEVICES = {
    name: {"forward_ms": 10.0 * times, "vjp_ms": 40.0 * times, "codec_ms": 1.0 * times, "network_ms": 5.0}
    for name, times in (("fast", 1), ("slow", _FACTOR))
}


def run(fleet: TinyFleet) -> World:
    """One vehicle computes three times as fast as the other."""
    fleet.folder.mkdir(parents=True, exist_ok=True)
    profiles = fleet.folder / "profiles.yaml"
    profiles.write_text(json.dumps({"devices": _DEVICES}))
    part = SimulationPart(time="virtual", profile="fast:1,slow:1", profiles=str(profiles))
    world = World(part, fleet=FLEET, vehicles=CARS, seed=0)
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
