"""How the machine of a vehicle is: heat, throttling, power mode, memory and disk, as Linux tells.

Everything is read from files that are there or not: what a machine does not tell stays None. Nothing here
decides anything; an operator sees it, and is warned in the log.
"""

from __future__ import annotations

import logging
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from edge_client.recent import Seeing
from protocol.messages import Health
from protocol.metrics import read_memory

log = logging.getLogger(__name__)

_EVERY_S = 10.0
"""What was read so long ago still holds."""
_LOGGED_EVERY_S = 600.0
_HOT_C = 90
_LITTLE_MEMORY_MB = 200
_LITTLE_DISK_MB = 1000
_FANS = re.compile(r"fan", re.IGNORECASE)
_COUNTERS = (
    "sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count",
    "sys/class/hwmon/hwmon*/oc*_event_cnt",
)
"""How often a processor was slowed down for heat or current: those of x86, and a Jetson's."""


class MachineHealth:
    """Reads the machine's files at most every ten seconds; from any thread."""

    def __init__(
        self,
        state: Path,
        is_paused: Callable[[], bool],
        *,
        seeing: Callable[[], Seeing] = Seeing,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`state`: a folder on the disk that may fill up; `is_paused`: whether the vehicle may not work;
        `seeing`: how its camera comes on."""
        self._state = state
        self._is_paused = is_paused
        self._seeing = seeing
        self._root = root
        self._clock = clock
        self._lock = threading.Lock()
        self._read_at = 0.0
        self._logged_at: float | None = None
        self._latest: Health | None = None
        self._throttle_count: int | None = None
        self._warned: set[str] = set()

    def now(self) -> Health:
        """How it is."""
        with self._lock:
            now = self._clock()
            if self._latest is None or now - self._read_at >= _EVERY_S:
                self._latest, self._read_at = self._read(), now
                self._warn(self._latest)
                if self._logged_at is None or now - self._logged_at >= _LOGGED_EVERY_S:
                    self._logged_at = now
                    log.info("health: %s", describe(self._with_what_changes(self._latest)))
            return self._with_what_changes(self._latest)

    def _with_what_changes(self, health: Health) -> Health:
        """What is known without reading a file."""
        seen = self._seeing()
        return msgspec.structs.replace(
            health,
            is_paused=self._is_paused(),
            camera_hz=None if seen.camera_hz is None else round(seen.camera_hz, 1),
            camera_dropped=seen.camera_dropped,
            served_hz=None if seen.served_hz is None else round(seen.served_hz, 1),
            served_ms=seen.served_ms,
        )

    def _read(self) -> Health:
        return Health(
            temperature_c=self._temperature_c(),
            is_throttled=self._is_throttled(),
            power_mode=self._power_mode(),
            free_memory_mb=self._free_memory_mb(),
            free_disk_mb=self._free_disk_mb(),
        )

    def _warn(self, health: Health) -> None:
        """Once when it gets bad, and once more after it was good."""
        signs = {
            "hot": health.temperature_c is not None and health.temperature_c >= _HOT_C,
            "throttled": bool(health.is_throttled),
            "short of memory": health.free_memory_mb is not None
            and health.free_memory_mb < _LITTLE_MEMORY_MB,
            "short of disk": health.free_disk_mb is not None and health.free_disk_mb < _LITTLE_DISK_MB,
        }
        bad = {sign for sign, holds in signs.items() if holds}
        for sign in sorted(bad - self._warned):
            log.warning("this machine is %s: %s", sign, describe(health))
        self._warned = bad

    # What Linux tells -------------------------------------------------------------------------------------

    def _temperature_c(self) -> int | None:
        """The hottest zone's. Zones of what is switched off can't be read."""
        found = [
            milli / 1000
            for path in self._root.glob("sys/class/thermal/thermal_zone*/temp")
            if (milli := _number(path)) is not None
        ]
        plausible = [celsius for celsius in found if -100 < celsius < 300]
        return round(max(plausible)) if plausible else None

    def _is_throttled(self) -> bool | None:
        """Whether anything but a fan cools now, or has slowed a processor down since the last look."""
        states = [
            state
            for path in self._root.glob("sys/class/thermal/cooling_device*/cur_state")
            if not _FANS.search(_text(path.with_name("type"))) and (state := _number(path)) is not None
        ]
        counts = [
            count
            for pattern in _COUNTERS
            for path in self._root.glob(pattern)
            if (count := _number(path)) is not None
        ]
        before, self._throttle_count = self._throttle_count, sum(counts)
        if not states and not counts:
            return None
        return any(states) or (before is not None and sum(counts) > before)

    def _power_mode(self) -> str | None:
        """A Jetson's by its name, a notebook's profile, or how the first core is clocked."""
        for mode in (
            self._jetson_mode(),
            _text(self._root / "sys/firmware/acpi/platform_profile"),
            _text(self._root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        ):
            if shown := re.sub(r"[^A-Za-z0-9 _.-]", "", mode)[:32].strip():
                return shown
        return None

    def _jetson_mode(self) -> str:
        chosen = re.search(r"pmode:0*(\d+)", _text(self._root / "var/lib/nvpmodel/status"))
        if chosen is None:
            return ""
        models = _text(self._root / "etc/nvpmodel.conf", most=100_000)
        named = re.search(rf"POWER_MODEL\s+ID=0*{chosen.group(1)}\s+NAME=(\S+)", models)
        return named.group(1) if named else f"mode {chosen.group(1)}"

    def _free_memory_mb(self) -> int | None:
        memory = read_memory(self._root)
        return memory[1] // 1_000_000 if memory else None

    def _free_disk_mb(self) -> int | None:
        there = next((path for path in (self._state, *self._state.parents) if path.exists()), None)
        try:
            return None if there is None else shutil.disk_usage(there).free // 1_000_000
        except OSError:
            return None


def describe(health: Health) -> str:
    """In one line, for a person."""
    said = [
        None if health.temperature_c is None else f"{health.temperature_c} °C",
        "throttled" if health.is_throttled else None,
        None if health.power_mode is None else f"power mode {health.power_mode}",
        None if health.free_memory_mb is None else f"{health.free_memory_mb:,} MB of memory free",
        None if health.free_disk_mb is None else f"{health.free_disk_mb:,} MB of disk free",
        None if health.camera_hz is None else f"the camera gives {health.camera_hz:g} frames a second",
        None if health.served_hz is None else f"{health.served_hz:g} class maps a second",
        "work pauses" if health.is_paused else None,
    ]
    return ", ".join(part for part in said if part) or "this machine tells nothing of it"


def _text(path: Path, *, most: int = 4096) -> str:
    """What a small file says; empty where it can't be read."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(most).strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    said = _text(path, most=32)
    return int(said) if re.fullmatch(r"-?\d{1,18}", said) else None
