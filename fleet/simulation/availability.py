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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from protocol.errors import SettingError
from protocol.noise import derive_seed

ALWAYS = "always"
_WINDOWS, _MARKOV = "windows:", "markov:"
_COLUMNS = ["vehicle", "from_s", "to_s", "there"]
_LONGEST_MEANS = 30.0
"""Of a random absence's mean: one in 10¹³ is longer than so many."""


@dataclass(frozen=True)
class Absences:
    """What vehicles' absences come to, seconds; one that never ends counts as none."""

    first_s: float
    """The longest at the start."""
    longest_s: float
    all_s: float = 0.0
    """All of one vehicle's, where they are known beforehand."""
    per_s: float = 0.0
    """For each second that it is there, where they are random."""


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
        first, changes = _of_ends(_windows(text))
        return {vehicle: Timeline(first, iter(changes)) for vehicle in vehicles}
    if text.startswith(_MARKOV):
        means = _means(text)
        return {vehicle: _markov(*means, derive_seed(seed, "away", vehicle)) for vehicle in vehicles}
    return {
        vehicle: Timeline(first, iter(changes))
        for vehicle, (first, changes) in _trace(Path(text), vehicles).items()
    }


def check_availability(text: str, vehicles: tuple[str, ...]) -> None:
    """Raise what `timelines` raises."""
    timelines(text, vehicles, 0)


def absences(text: str) -> Absences:
    """What an availability takes away.

    Raises:
        SettingError: see `timelines`; of a trace, whose vehicles it names is not looked at.
    """
    if text == ALWAYS:
        return Absences(0.0, 0.0)
    if text.startswith(_MARKOV):
        there_s, away_s = _means(text)
        longest_s = _LONGEST_MEANS * away_s
        return Absences(longest_s, longest_s, per_s=away_s / there_s)
    courses = [_of_ends(_windows(text))] if text.startswith(_WINDOWS) else _trace(Path(text)).values()
    away = [list(_away(*course)) for course in courses]
    first_s = max((end for spans in away for start, end in spans if start == 0), default=0.0)
    longest_s = max((end - start for spans in away for start, end in spans), default=0.0)
    all_s = max((sum(end - start for start, end in spans) for spans in away), default=0.0)
    return Absences(first_s, longest_s, all_s)


def is_trace(text: str) -> bool:
    """Whether an availability names a file."""
    return text != ALWAYS and not text.startswith((_WINDOWS, _MARKOV))


def _away(first: bool, changes: Sequence[float]) -> Iterator[tuple[float, float]]:
    """From when to when a vehicle is away, but for an absence that never ends."""
    bounds = list(changes) if first else [0.0, *changes]
    return zip(bounds[::2], bounds[1::2], strict=False)


def _of_ends(ends: list[float]) -> tuple[bool, list[float]]:
    """There from the first end to the second, and so on."""
    first = ends[0] == 0
    return first, ends[1:] if first else ends


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


def _trace(path: Path, vehicles: tuple[str, ...] | None = None) -> dict[str, tuple[bool, list[float]]]:
    """Whether each vehicle is there at 0 s, and when that changes; None: any vehicle may be named."""
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
    vehicles: tuple[str, ...] | None,
    ends: dict[str, float],
    states: dict[str, list[tuple[float, bool]]],
) -> None:
    if len(row) != len(_COLUMNS) or row[3] not in ("yes", "no"):
        raise SettingError(f"{where}: expected VEHICLE,FROM,TO,yes or no, got {','.join(row)!r}")
    vehicle, start, end = row[0], _seconds(row[1]), _seconds(row[2]) if row[2] else math.inf
    if vehicles is not None and vehicle not in vehicles:
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


def _of_states(rows: list[tuple[float, bool]]) -> tuple[bool, list[float]]:
    changes = [start for (_, before), (start, after) in itertools.pairwise(rows) if before != after]
    return rows[0][1], changes


def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < math.inf else None
