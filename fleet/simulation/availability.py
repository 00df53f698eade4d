"""When a vehicle has a link at all: always, in windows, at random times, or as a trace says.

`always`; `windows:0-600,900-1200` in seconds of the run, the last one perhaps without an end;
`markov:300/60`, there for 300 s and away for 60 s on average, at times drawn for each vehicle; or a CSV file
with the columns `vehicle,from_s,to_s,there` (`yes` or `no`), each vehicle's rows without a gap or overlap
from 0 on, the last state lasting. A vehicle that a file does not name is always there.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from protocol.errors import SettingError
from protocol.noise import derive_seed

ALWAYS = "always"
_WINDOWS, _MARKOV = "windows:", "markov:"
_COLUMNS = ["vehicle", "from_s", "to_s", "there"]


class Timeline:
    """Whether one vehicle is there, at any time; computed as far as it is asked for."""

    def __init__(self, first: bool, changes: Iterator[float]) -> None:
        """`first` at 0 s, the other at each of the ascending `changes`."""
        self._first = first
        self._changes = changes
        self._known: list[float] = []

    def next_change(self, now: float) -> float | None:
        """The first one after `now`; None: there is none."""
        while not self._known or self._known[-1] <= now:
            change = next(self._changes, None)
            if change is None:
                return None
            self._known.append(change)
        return self._known[np.searchsorted(self._known, now, side="right")]

    def is_there(self, now: float) -> bool:
        """Whether it is."""
        self.next_change(now)
        return self._first ^ bool(np.searchsorted(self._known, now, side="right") % 2)

    def next_there(self, now: float) -> float:
        """`now`, or when it comes back; infinite: never."""
        if self.is_there(now):
            return now
        change = self.next_change(now)
        return math.inf if change is None else change


def timelines(text: str, vehicles: tuple[str, ...], seed: int) -> dict[str, Timeline]:
    """By vehicle.

    Raises:
        SettingError: it is none of the forms above, or a trace has a gap, an overlap or a strange vehicle.
    """
    if text == ALWAYS:
        return {}
    if text.startswith(_WINDOWS):
        ends = _windows(text)
        return {vehicle: _of_ends(ends) for vehicle in vehicles}
    if text.startswith(_MARKOV):
        means = _means(text)
        return {vehicle: _markov(*means, derive_seed(seed, "away", vehicle)) for vehicle in vehicles}
    return _trace(Path(text), vehicles)


def check_availability(text: str, vehicles: tuple[str, ...]) -> None:
    """Raise what `timelines` raises."""
    timelines(text, vehicles, 0)


def _of_ends(ends: list[float]) -> Timeline:
    """There from the first end to the second, and so on."""
    first = ends[0] == 0
    return Timeline(first, iter(ends[1:] if first else ends))


def _windows(text: str) -> list[float]:
    ends: list[float] = []
    for window in text.removeprefix(_WINDOWS).split(","):
        start, dash, end = window.partition("-")
        low, high = _seconds(start), _seconds(end) if end else math.inf
        if not dash or low is None or high is None or low >= high or (ends and low <= ends[-1]):
            raise SettingError(
                f"simulation.availability: windows must be FROM-TO in seconds, one after another, such as "
                f"windows:0-600,900-, got {window!r} in {text!r}"
            )
        ends += [low, high]
    return [end for end in ends if end < math.inf]


def _means(text: str) -> tuple[float, float]:
    there, slash, away = text.removeprefix(_MARKOV).partition("/")
    there_s, away_s = _seconds(there), _seconds(away)
    if not slash or not there_s or not away_s:
        raise SettingError(
            f"simulation.availability: markov:THERE/AWAY takes two means above 0 in seconds, such as "
            f"markov:300/60, got {text!r}"
        )
    return there_s, away_s


def _markov(there_s: float, away_s: float, seed: int) -> Timeline:
    random = np.random.Generator(np.random.Philox(key=seed))
    first = bool(random.random() < there_s / (there_s + away_s))

    def changes() -> Iterator[float]:
        now = 0.0
        for state in itertools.cycle((first, not first)):
            now += random.exponential(there_s if state else away_s)
            yield now

    return Timeline(first, changes())


def _trace(path: Path, vehicles: tuple[str, ...]) -> dict[str, Timeline]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(
            f"simulation.availability must be {ALWAYS}, windows:FROM-TO,…, markov:THERE/AWAY or a CSV file, "
            f"got {str(path)!r}: {getattr(error, 'strerror', None) or error}"
        ) from error
    if not rows or rows[0] != _COLUMNS:
        raise SettingError(f"{path}: its first line must be {','.join(_COLUMNS)}")
    ends: dict[str, float] = {}
    states: dict[str, list[tuple[float, bool]]] = {}
    for number, row in enumerate(rows[1:], start=2):
        _add_row(f"{path}, line {number}", row, vehicles, ends, states)
    return {vehicle: _of_states(rows) for vehicle, rows in states.items()}


def _add_row(
    where: str,
    row: list[str],
    vehicles: tuple[str, ...],
    ends: dict[str, float],
    states: dict[str, list[tuple[float, bool]]],
) -> None:
    if len(row) != len(_COLUMNS) or row[3] not in ("yes", "no"):
        raise SettingError(f"{where}: expected VEHICLE,FROM,TO,yes or no, got {','.join(row)!r}")
    vehicle, start, end = row[0], _seconds(row[1]), _seconds(row[2]) if row[2] else math.inf
    if vehicle not in vehicles:
        raise SettingError(f"{where}: vehicle {vehicle!r} is not in this fleet")
    if start is None or end is None or start >= end:
        raise SettingError(
            f"{where}: FROM and TO must be seconds, the second the later, got {','.join(row)!r}"
        )
    last = ends.get(vehicle, 0.0)
    if start != last:
        what = "a gap" if start > last else "an overlap"
        raise SettingError(
            f"{where}: {what} in the trace of {vehicle}: {start:g} s follows {last:g} s; let each row begin "
            f"where the one before ends, the first at 0"
        )
    ends[vehicle] = end
    states.setdefault(vehicle, []).append((start, row[3] == "yes"))


def _of_states(rows: list[tuple[float, bool]]) -> Timeline:
    changes = [start for (_, before), (start, after) in itertools.pairwise(rows) if before != after]
    return Timeline(rows[0][1], iter(changes))


def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < math.inf else None
