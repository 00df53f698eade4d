"""A launched run for Prometheus: its log folded, and its processes looked at, whenever somebody fetches."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from cloud_server.metrics import RunMetrics
from fleet.show.follow import LogFollower
from protocol.metrics import Family, process_families

_IDS = Path("processes", "processes.json")


def process_ids(run_folder: Path) -> dict[str, int]:
    """Those of a run's processes by their names; empty where none were started."""
    try:
        ids: dict[str, int] = json.loads((run_folder / _IDS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return ids


class LaunchMetrics:
    """What a launcher serves of the run in a folder, which need not be there yet."""

    def __init__(
        self, run_folder: Path, labels: Mapping[str, str], *, clock: Callable[[], float] = time.time
    ) -> None:
        """`clock` says when series of vehicles that have left expire."""
        self._run_folder = run_folder
        self._metrics = RunMetrics(labels, clock=clock)
        # From the beginning: a run that is resumed has its counts from before.
        self._follower = LogFollower(run_folder, self._metrics, from_start=True)
        self._lock = threading.Lock()

    def families(self) -> Iterator[Family]:
        """As of now."""
        with self._lock:
            self._follower.update()
        yield from self._metrics.families()
        yield from process_families({"launcher": os.getpid(), **process_ids(self._run_folder)})
