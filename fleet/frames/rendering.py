"""Generated driving frames of a run: how many a fleet needs, and their rendering, with the time left."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.status import Status

from datasets.allotment import MIN_FRAMES
from datasets.catalog import find_dataset
from datasets.generated import GeneratorSettings
from datasets.partition import READ_LABELS
from fleet.many_vehicles import MANY
from fleet.scenario import RENDERED_TEST_SPLIT, Scenario, parse_image_size

_MOST_CITIES = 8
"""Cities of the embedded default; larger fleets share them."""
_FRAMES_PER_CITY = 60
_VAL_FRAMES_PER_CITY = 12
"""Of one more drive through each city, where the test split of a run is `val`."""
_ANNOUNCED_FROM = 500
"""Frames from which a line says what is going on, also without a terminal."""
_ESTIMATE_AFTER_S = 5.0


def rendered_cities(scenario: Scenario) -> int:
    """Cities of a generated data set."""
    return scenario.dataset.generated_cities or min(scenario.vehicles, _MOST_CITIES)


def rendered_frames_per_city(scenario: Scenario) -> int:
    """Frames of each city: what the scenario says, else as many as every vehicle needs, at least 60."""
    if scenario.dataset.frames_per_sequence is not None:
        return scenario.dataset.frames_per_sequence
    cities = rendered_cities(scenario) if scenario.dataset.cities is None else len(scenario.dataset.cities)
    return max(_FRAMES_PER_CITY, MIN_FRAMES * -(-scenario.vehicles // cities))


def drawn_when_read(scenario: Scenario) -> bool:
    """Whether frames are drawn by those who read them: in a large fleet only some ever are."""
    return (
        scenario.vehicles > MANY
        and find_dataset(scenario.dataset.name).render_when_read is not None
        and scenario.dataset.test_split is None
        and scenario.dataset.partition not in READ_LABELS
    )


def render_missing(scenario: Scenario, root: Path, console: Console) -> None:
    """Render the frames of a run that are not there yet, if its data set is a generated one.

    Raises:
        GeneratorFolderError, SettingError, OSError: see `datasets.generated.generate_dataset`.
    """
    render = find_dataset(scenario.dataset.name).render
    if render is None:
        return
    settings = GeneratorSettings(
        cities=rendered_cities(scenario),
        frames_per_sequence=rendered_frames_per_city(scenario),
        image_size=parse_image_size(scenario.image_size),
        seed=scenario.seed,
    )
    when_read = find_dataset(scenario.dataset.name).render_when_read
    if when_read is not None and drawn_when_read(scenario):
        when_read(root, settings)
        return
    val = {"val_frames": _VAL_FRAMES_PER_CITY} if scenario.dataset.test_split == RENDERED_TEST_SPLIT else {}
    what = (
        f"rendering driving frames into {root}: {settings.cities} cities, "
        f"{settings.frames_per_sequence} frames of each"
    )
    with console.status("rendering driving frames") as status:
        told = _Told(console, status, what)
        render(root, settings, **val, workers=scenario.core_count, progress=told.progress)


class _Told:
    """What is said while frames are rendered: in the status of a terminal all the time, else in two lines."""

    def __init__(self, console: Console, status: Status, what: str) -> None:
        self._console, self._status, self._what = console, status, what
        self._began = time.monotonic()
        self._first: int | None = None
        self._lines = 0

    def progress(self, done: int, total: int) -> None:
        """`done` of `total` frames are there."""
        if self._first is None:
            self._first = done - 1
            if total - done >= _ANNOUNCED_FROM:
                self._say(f"{self._what}, {total - self._first} of {total} to go")
        elapsed_s = time.monotonic() - self._began
        left_s = round(elapsed_s / max(1, done - self._first) * (total - done))
        left = f", about {left_s // 60}:{left_s % 60:02d} left" if elapsed_s > _ESTIMATE_AFTER_S else ""
        self._status.update(f"rendering driving frames {done}/{total}{left}")
        if left and self._lines == 1:
            self._say(f"{done} of {total} frames rendered{left}")

    def _say(self, line: str) -> None:
        self._lines += 1
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)
