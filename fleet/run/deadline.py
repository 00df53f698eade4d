"""Whether a round's deadline can be kept: what a simulated vehicle computes in a turn is known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cloud_server.algorithms.table import algorithm_row
from edge_client.encoder.bundle import EncoderBundle
from edge_client.host import HostConfig, VehicleConfig
from fleet.errors import OperatorError
from fleet.scenario import Scenario
from fleet.simulation.world import World
from protocol.charging import Computing
from protocol.local_model import LocalModel
from protocol.plans.late import Late

_STEP_ADDS = 3
"""Multiply-adds of a step of training in those of the way there."""


def check_deadline(scenario: Scenario, hosts: Sequence[HostConfig], world: World) -> None:
    """Refuse a deadline by which no vehicle has done its first turn of learning, its transfers not counted.

    Raises:
        OperatorError: the message names the quickest vehicle, and what it takes.
    """
    deadline_s = scenario.way(Late).deadline_s
    passes = algorithm_row(scenario.algorithm).own_passes(scenario)
    if deadline_s is None or passes == 0:
        return
    adds: dict[str, int] = {}
    least: list[tuple[float, str]] = []
    for vehicle in (vehicle for host in hosts for vehicle in host.vehicles):
        folder = vehicle.local_model or vehicle.bundle
        if folder not in adds:
            adds[folder] = _way_back(vehicle)
        frames = passes * len(vehicle.frames["train"])
        device = scenario.simulation.find_device(world.devices[vehicle.id])
        least.append((device.seconds(Computing.WAY_BACK, frames, adds[folder]), vehicle.id))
    takes_s, quickest = min(least)
    if takes_s >= deadline_s:
        raise OperatorError(
            f"late.deadline_s {deadline_s:g} is shorter than any vehicle's turn: the quickest, {quickest} "
            f"({world.devices[quickest]}), computes for {takes_s:.3g} s before its work crosses; give more "
            f"(--deadline)"
        )


def _way_back(vehicle: VehicleConfig) -> int:
    """Multiply-adds of a frame in a step of learning; 0 = not known."""
    if vehicle.local_model is not None:
        return _STEP_ADDS * LocalModel.load(Path(vehicle.local_model)).spec.multiply_adds
    graphs = EncoderBundle.load(Path(vehicle.bundle)).spec.graphs
    return graphs["vjp"].multiply_adds if "vjp" in graphs else 0
