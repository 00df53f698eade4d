"""How long a simulated run waits for vehicles that its availability takes away, where nobody says otherwise.

Written into the scenario like any other setting, so that a file or an option overrides each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from cloud_server.config import PatienceConfig
from fleet.scenario_file import put
from fleet.simulation.availability import Absences, absences
from fleet.simulation.settings import SimulationPart, read_part
from protocol.errors import BlackfleetError


def put_for_absences(content: dict[str, Any]) -> None:
    """Put what absences ask for under a scenario's patience; what is wrong in it is said where it is made."""
    part, given = read_part(content.get("simulation")), content.get("patience", {})
    if not isinstance(given, Mapping):
        return
    try:
        away = absences(part.availability)
    except BlackfleetError:
        return
    needed: dict[str, Any] = _needed(away)
    if part.bounds_data:
        needed["on_failure"] = "readmit"  # nobody waits for the month to end
    for name, value in needed.items():
        if name not in given:
            put(content, f"patience.{name}", value)


def remark_on_absences(part: SimulationPart, patience: PatienceConfig) -> str | None:
    """What a launch says of a patience that follows from absences, or is too short for them."""
    away = absences(part.availability)
    needed = _needed(away)
    short = [
        f"{name} {getattr(patience, name):g} s"
        for name, least_s in (("join_s", away.first_s), ("give_up_s", away.longest_s))
        if getattr(patience, name) < least_s
    ]
    if short:
        return (
            f"vehicles are away for longer than the cloud waits for them (patience: {', '.join(short)}): it "
            f"goes on without those, unless on_failure says otherwise"
        )
    taken = [f"{name} {seconds:g}" for name, seconds in needed.items() if getattr(patience, name) == seconds]
    if not taken:
        return None
    return f"as vehicles are away at times, the cloud waits longer for them (patience: {', '.join(taken)})"


def _needed(away: Absences) -> dict[str, float]:
    """By name, where absences ask for more than the default."""
    usual = msgspec.to_builtins(PatienceConfig())
    needed = {
        "join_s": usual["join_s"] + away.first_s,
        "give_up_s": usual["give_up_s"] + away.longest_s,
        "turn_s": usual["turn_s"] * (1 + away.per_s) + away.all_s,
    }
    return {name: seconds for name, seconds in needed.items() if seconds > usual[name]}
