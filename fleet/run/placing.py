"""What a scenario means where its processes go to other machines."""

from __future__ import annotations

from pathlib import Path

import msgspec

from cloud_server.algorithms.table import algorithm_row
from fleet.broker import MEMORY_BUS, OWN_BROKERS
from fleet.errors import OperatorError
from fleet.run.places import Needs
from fleet.scenario import Scenario

_FEW = 8
"""Vehicles up to which each has a process of its own anyway."""


def check_placeable(scenario: Scenario) -> None:
    """Refuse a run that has no processes which could be elsewhere.

    Raises:
        OperatorError: the message says why.
    """
    if algorithm_row(scenario.algorithm).build is None:
        raise OperatorError(f"{scenario.algorithm} has no vehicles that could be placed: leave --ray out")
    if scenario.broker == MEMORY_BUS:
        raise OperatorError(
            "on the bus in memory the whole fleet is one process on this machine: leave --ray out, or "
            "--broker memory and simulated links, devices and time"
        )


def with_hosts_for(scenario: Scenario, places: int) -> Scenario:
    """The scenario with as many vehicle hosts as there are places, unless it says how many share one."""
    if scenario.vehicles_per_host is not None or scenario.vehicles <= _FEW:
        return scenario
    return msgspec.structs.replace(scenario, vehicles_per_host=-(-scenario.vehicles // places))


def needs_of(scenario: Scenario, run_folder: Path) -> Needs:
    """What the machines of a run must see."""
    return Needs(
        run_folder=run_folder,
        data_root=Path(scenario.dataset.root) if scenario.dataset.root else None,
        broker=None if scenario.broker in OWN_BROKERS else scenario.broker,
        identity=scenario.vehicle_ids[0],
    )
