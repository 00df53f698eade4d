"""A run's lines where there is no terminal: each vehicle's of a small fleet, one a round of a large one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

EACH_UP_TO = 16
"""Vehicles up to which each has its own lines."""
_MOST_ROWS = 40
_MOVERS = 10
_INCIDENTS = 10
"""Most lines about one kind of incident in a round."""


def movers(vehicles: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], str]:
    """The vehicles of a result that its table names, and what it says of the others.

    All of up to 40; else, of those tested at both ends, the ten whose own mIoU has risen most, best first,
    and the ten that it has risen least of, or fallen.
    """
    if len(vehicles) <= _MOST_ROWS:
        return list(vehicles), ""
    gains = {
        vehicle: entry["local_miou"] - entry["initial_local_miou"]
        for vehicle, entry in vehicles.items()
        if None not in (entry["local_miou"], entry["initial_local_miou"])
    }
    if len(gains) < 2 * _MOVERS:
        shown = [*gains] or list(vehicles)[: 2 * _MOVERS]
    else:
        ranked = sorted(gains, key=lambda vehicle: gains[vehicle], reverse=True)
        shown = ranked[:_MOVERS] + ranked[-_MOVERS:]
    return shown, f"… and {len(vehicles) - len(shown)} more"


class Summaries:
    """Turns what happens to single vehicles into lines; a caller prints them."""

    def __init__(self, vehicles: int) -> None:
        self._vehicles = vehicles
        self._period = ""
        self._values: dict[str, list[float]] = {}
        """By kind of score: those of this period, all of them."""
        self._tails: dict[str, Callable[[], str]] = {}
        self._summed: Counter[str] = Counter()
        """By kind of score: vehicles that a line has told of."""
        self._told: Counter[str] = Counter()
        self._untold: Counter[str] = Counter()
        self._heard: Counter[str] = Counter()

    def score(
        self, period: str, kind: str, value: float | None, line: str, tail: Callable[[], str] = lambda: ""
    ) -> list[str]:
        """Of a vehicle that got `value` in a round or evaluation `period`, and the line that says so; `tail`
        makes what a line about all vehicles ends with."""
        if self._vehicles <= EACH_UP_TO:
            return [line]
        lines = self.rest() if period != self._period else []
        self._period = period
        values = self._values.setdefault(kind, [])
        self._heard[kind] += 1
        if value is not None and math.isfinite(value):
            values.append(value)
        self._tails[kind] = tail
        if self._heard[kind] == self._vehicles:
            lines.append(self._summary(kind))
        return lines

    def incident(self, kind: str, line: str) -> list[str]:
        """Of something that may happen any number of times: the first few, then they are counted."""
        if self._told[kind] < _INCIDENTS:
            self._told[kind] += 1
            return [line]
        self._untold[kind] += 1
        return []

    def rest(self) -> list[str]:
        """What no line has told yet, at the end of a period or of the run."""
        lines = [self._summary(kind) for kind in self._values if self._summed[kind] < self._heard[kind]]
        lines += [f"{count} more: {kind}" for kind, count in self._untold.items()]
        for counts in (self._values, self._tails, self._summed, self._heard, self._told, self._untold):
            counts.clear()
        return lines

    def _summary(self, kind: str) -> str:
        values, heard = self._values[kind], self._heard[kind]
        self._summed[kind] = heard
        spread = (
            f"{sum(values) / len(values):.3f} on average, {min(values):.3f} to {max(values):.3f}"
            if values
            else "–"
        )
        parts = (self._period, kind, f"{heard} of {self._vehicles} vehicles", f"mIoU {spread}")
        return "  ".join(filter(None, (*parts, self._tails[kind]())))
