"""How many cores this process may use: those it was given, less what a quota takes away."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_PROCESS_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
_CPU = "cpu"


def usable_cores(*, process_groups: Path = _PROCESS_GROUPS, groups: Path = _GROUPS) -> int:
    """Cores for this process and its children, by affinity (taskset, cpuset) and quota (containers, Slurm).

    A quota of one and a half is one core: planned for two, both would be held up. `process_groups` says which
    control groups this process is in, `groups` is where they are mounted.
    """
    granted = _by_affinity()
    quota = min(_quotas(process_groups, groups), default=math.inf)
    return max(1, min(granted, math.floor(quota) if math.isfinite(quota) else granted))


def _by_affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def _quotas(process_groups: Path, groups: Path) -> Iterator[float]:
    """Cores that each control group around this process allows, those without a limit left out."""
    for controllers, path in _memberships(process_groups):
        if not controllers:
            mounts = [groups, groups / "unified"]  # version 2, alone or beside version 1
        elif _CPU in controllers.split(","):
            mounts = [groups / controllers, groups / _CPU]
        else:
            continue
        for mount in mounts:
            for folder in _up_to(mount, path):
                quota = _quota_v1(folder) if controllers else _quota_v2(folder)
                if quota is not None:
                    yield quota


def _memberships(process_groups: Path) -> Iterator[tuple[str, str]]:
    """(controllers, path) of the lines `5:cpu,cpuacct:/some/group`; version 2 has no controllers there."""
    try:
        lines = process_groups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        yield controllers, path


def _up_to(mount: Path, path: str) -> Iterator[Path]:
    """The group's folder and those around it. In a container the path may be the host's: those that aren't
    there have no limit to read."""
    folder = mount / path.lstrip("/")
    while folder != mount and mount in folder.parents:
        yield folder
        folder = folder.parent
    yield mount


def _quota_v2(folder: Path) -> float | None:
    """Of `cpu.max`: `150000 100000`, or `max 100000`, microseconds of a period."""
    words = _read(folder / "cpu.max").split()
    return _ratio(*words) if len(words) == 2 else None


def _quota_v1(folder: Path) -> float | None:
    return _ratio(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float | None:
    try:
        return int(quota) / int(period) if int(quota) > 0 < int(period) else None
    except ValueError:
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
