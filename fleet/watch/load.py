"""What a run's processes and their machine are busy with, looked at while somebody looks.

Nothing of it is logged: it is of now, and of this machine.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from fleet.show.metrics import process_ids
from protocol.metrics import ProcessNow, read_memory, read_process


class Load:
    """One reader's looks, each of which tells what was done since the one before."""

    def __init__(self, run_folder: Path, *, launcher: int | None = None) -> None:
        """`launcher` is the id of the process that has started the others, where that is known."""
        self._run_folder = run_folder
        self._launcher = launcher
        self._before: dict[int, ProcessNow] = {}
        self._ticks_before: tuple[int, int, int] | None = None
        self._looked_at = 0.0

    def look(self) -> dict[str, Any] | None:
        """`processes`: by name the `cpu` (1 = one core) and `memory` in bytes of each that runs; `machine`:
        its `cores`, how many of them were `busy` with anything, `memory` and what is `free` of it. None
        where nobody counts (no Linux), at the first look, and where none of the processes is here.
        """
        now, ids = time.monotonic(), process_ids(self._run_folder)
        if self._launcher is not None:
            ids = {"launcher": self._launcher, **ids}
        found = {name: (pid, read) for name, pid in ids.items() if (read := read_process(pid)) is not None}
        ticks, memory = _ticks(), read_memory()
        before, ticks_before, took_s = self._before, self._ticks_before, now - self._looked_at
        self._before, self._ticks_before = dict(found.values()), ticks
        self._looked_at = now
        if (
            not found
            or ticks is None
            or ticks_before is None
            or memory is None
            or ticks[1] == ticks_before[1]
        ):
            return None
        cores = ticks[2]
        busy = cores * (ticks[0] - ticks_before[0]) / (ticks[1] - ticks_before[1])
        return {
            "processes": {
                name: {
                    "cpu": round(max(0.0, read.cpu_s - before[pid].cpu_s) / took_s, 3)
                    if pid in before
                    else None,
                    "memory": read.memory_bytes,
                }
                for name, (pid, read) in found.items()
            },
            "machine": {"cores": cores, "busy": round(busy, 2), "memory": memory[0], "free": memory[1]},
        }


def _ticks() -> tuple[int, int, int] | None:
    """(busy, all) of all cores since the start, as proc(5) counts, and how many cores these are."""
    try:
        first, *others = Path("/proc/stat").read_text().splitlines()
        counts = [int(word) for word in first.split()[1:9]]
    except (OSError, ValueError):
        return None
    idle, waiting = counts[3:5]
    cores = sum(line.startswith("cpu") for line in others)
    return sum(counts) - idle - waiting, sum(counts), cores
