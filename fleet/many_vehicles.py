"""What a fleet of many vehicles does where nobody says otherwise: short turns, a sample of it tested.

Written into the scenario like any other setting, so that a file or an option overrides each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets.allotment import MIN_FRAMES
from datasets.catalog import DATASETS
from fleet.scenario_file import put

MANY = 100
"""Vehicles above which a fleet has these defaults."""
_CITY_FRAMES = 60
_LEAST_JOIN_S, _JOINS_PER_S = 120.0, 10
"""On a machine that has much else to do; a process first builds its vehicles, three milliseconds each."""
_COMMITS_A_ROUND = 100
"""Of an algorithm that has a stage for each vehicle, about."""
_BEATS_PER_S, _LEAST_BEAT_S, _MOST_BEAT_S = 25, 10.0, 120.0
_FOR_MANY: Mapping[str, Any] = {
    "evaluation.vehicles": 50,
    "evaluation.overlays": 1,
    "local_loss.warm_up_epochs": 8,
    "local_loss.epochs": 2,
    "zeroth_order.batches": 1,
    "first_order.epochs": 3,
}


def put_for_many(content: dict[str, Any]) -> None:
    """Put what many vehicles take by default under the settings of a scenario, where it has that many."""
    vehicles = content.get("vehicles")
    if not isinstance(vehicles, int) or vehicles <= MANY:
        return
    many = {
        **_FOR_MANY,
        "patience.heartbeat_s": _heartbeat_s(vehicles),
        "patience.join_s": max(_LEAST_JOIN_S, vehicles / _JOINS_PER_S),
    }
    content.setdefault("commit_every", max(1, vehicles // _COMMITS_A_ROUND))
    for key, value in {**many, **_cities(vehicles, content.get("dataset"))}.items():
        section, _, name = key.partition(".")
        given = content.get(section, {})
        if isinstance(given, Mapping) and name not in given:
            put(content, key, value)


def remark_on_many(scenario: Any) -> str | None:
    """What a launch says of a fleet that has some of these defaults."""
    if scenario.vehicles <= MANY:
        return None
    kept = [
        f"{key} {value}"
        for key, value in _FOR_MANY.items()
        for section, _, name in [key.partition(".")]
        if getattr(getattr(scenario, section), name) == value
    ]
    if not kept:
        return None
    return (
        f"{scenario.vehicles} vehicles: short turns, and a sample of the fleet is tested, unless you say "
        f"otherwise ({', '.join(kept)})"
    )


def _heartbeat_s(vehicles: int) -> float:
    """Between two signs of life of a vehicle: those of all must not keep cloud, broker and vehicles busy."""
    return min(_MOST_BEAT_S, max(_LEAST_BEAT_S, vehicles / _BEATS_PER_S))


def _cities(vehicles: int, dataset: Any) -> dict[str, Any]:
    """Of frames that are drawn: as many cities as the fleet needs."""
    given = dataset if isinstance(dataset, Mapping) else {}
    entry = DATASETS.get(str(given.get("name", "generated")))
    frames = given.get("frames_per_sequence") or _CITY_FRAMES
    if entry is None or entry.render is None or "cities" in given or not isinstance(frames, int):
        return {}
    return {"dataset.generated_cities": max(1, -(-MIN_FRAMES * vehicles // max(1, frames)))}
