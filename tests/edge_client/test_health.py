"""What a vehicle says of its machine: read from the files that there are, bounded, said seldom."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.health import MachineHealth, describe
from edge_client.metrics import machine_families
from edge_client.recent import RecentRate, Seeing
from protocol.messages import Health, Status

FILES = {
    "sys/class/thermal/thermal_zone0/temp": "51500\n",
    "sys/class/thermal/thermal_zone1/temp": "93400\n",
    "sys/class/thermal/thermal_zone2/temp": "-256000\n",  # switched off
    "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device0/cur_state": "3\n",
    "sys/class/thermal/cooling_device1/type": "cpufreq-cpu0\n",
    "sys/class/thermal/cooling_device1/cur_state": "0\n",
    "sys/class/hwmon/hwmon1/oc1_event_cnt": "7\n",
    "var/lib/nvpmodel/status": "pmode:0002\n",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=15W >\n",
    "proc/meminfo": "MemTotal:       7800000 kB\nMemAvailable:    146500 kB\n",
}


class Machine:
    """A machine's files below a folder, and a clock that stands still until it is moved."""

    def __init__(self, root: Path, files: dict[str, str]) -> None:
        self.root, self.now = root, 100.0
        for name, content in files.items():
            self.write(name, content)
        self.health = MachineHealth(root / "state", lambda: False, root=root, clock=lambda: self.now)

    def write(self, name: str, content: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    def later(self, seconds: float) -> Health:
        self.now += seconds
        return self.health.now()


def test_a_jetson_tells_of_heat_throttling_power_and_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    machine = Machine(tmp_path, FILES)
    said = machine.health.now()
    assert (said.temperature_c, said.power_mode, said.free_memory_mb) == (93, "15W", 150)
    assert said.is_throttled is False, "a fan slows nothing down, and what happened before is past"
    assert said.free_disk_mb is not None and said.free_disk_mb > 0
    warnings = [r.message.partition(":")[0] for r in caplog.records if r.levelname == "WARNING"]
    assert warnings[:2] == ["this machine is hot", "this machine is short of memory"]
    machine.write("sys/class/hwmon/hwmon1/oc1_event_cnt", "8\n")
    assert machine.later(5).is_throttled is False, "read every ten seconds"
    assert machine.later(5).is_throttled
    assert machine.later(10).is_throttled is False
    machine.write("sys/class/thermal/cooling_device1/cur_state", "2\n")
    assert machine.later(10).is_throttled
    assert len([r for r in caplog.records if r.levelname == "INFO"]) == 1, "the whole line every ten minutes"
    machine.later(600)
    assert len([r for r in caplog.records if r.levelname == "INFO"]) == 2


def test_what_a_machine_does_not_tell_is_left_out(tmp_path: Path) -> None:
    said = Machine(tmp_path, {}).health.now()
    assert msgspec.structs.replace(said, free_disk_mb=None) == Health()
    there = {family.name for family in machine_families(lambda: said) if family.samples}
    assert there == {"blackfleet_host_free_disk_bytes", "blackfleet_host_paused"}


def test_camera_and_class_maps_are_told_as_they_are_now(tmp_path: Path) -> None:
    now, sees = [100.0], [Seeing()]
    rate = RecentRate(clock=lambda: now[0])
    health = MachineHealth(tmp_path, lambda: False, seeing=lambda: sees[0])
    assert health.now().camera_hz is None
    for number in range(150):
        now[0] = 100 + 0.1 * number
        rate.note()
    sees[0] = Seeing(rate.hz, 7, 2.04, 31)
    said = health.now()
    assert (said.camera_hz, said.camera_dropped, said.served_hz, said.served_ms) == (10.0, 7, 2.0, 31)
    assert "the camera gives 10 frames a second, 2 class maps a second" in describe(said)
    numbers = {family.name: family.samples for family in machine_families(lambda: said)}
    assert numbers["blackfleet_host_camera_rate_hertz"] == [((), 10.0)]
    assert numbers["blackfleet_host_camera_dropped_total"] == [((), 7)]
    assert numbers["blackfleet_host_served_age_seconds"] == [((), 0.031)]
    now[0] += 10
    assert rate.hz == 0, "a camera that gives nothing any more"


def test_this_machine_can_be_read(tmp_path: Path) -> None:
    said = MachineHealth(tmp_path, lambda: True).now()
    assert said.is_paused
    assert said.free_memory_mb is None or said.free_memory_mb > 0


@settings(max_examples=20)
@given(st.dictionaries(st.sampled_from(sorted(FILES)), st.text(max_size=40)))
def test_whatever_files_say_the_status_can_be_sent(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, str]
) -> None:
    files = {name: re.sub(r"[\ud800-\udfff]", "", content) for name, content in files.items()}
    said = Machine(tmp_path_factory.mktemp("machine"), FILES | files).health.now()
    status = Status(vehicle="car-1", session="ab" * 8, online=True, beat=0, health=said)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(status), type=Status) == status
