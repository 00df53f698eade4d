"""The shipped systemd units: sound, walled in, and their commands and environments form a fleet."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from brokers import running_broker
from fleet_fixtures import World
from process_fixtures import ROOT, WAIT_S, environment

from edge_client.command import _parse
from fleet import broker

DEPLOY = ROOT / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
VEHICLE = DEPLOY / "blackfleet-vehicle.service"
CLOUD = DEPLOY / "blackfleet-cloud.service"
PYTHON = "/opt/blackfleet/.venv/bin/python"


def settings(name: str) -> dict[str, str]:
    """A shipped environment file."""
    return dict(re.findall(r"^([A-Z_]+)=(.*)$", (DEPLOY / name).read_text(), re.MULTILINE))


def command_line(unit: Path, variables: Mapping[str, str]) -> list[str]:
    """`ExecStart` as systemd reads it: `${NAME}` is a part of a word, `$NAME` as many words as it holds."""
    [line] = re.findall(r"^ExecStart=(.*)$", unit.read_text().replace("\\\n", " "), re.MULTILINE)
    words: list[str] = []
    for word in line.split():
        if re.fullmatch(r"\$[A-Z_]+", word):
            words += variables.get(word[1:], "").split()
        else:
            words.append(re.sub(r"\$\{([A-Z_]+)\}", lambda name: variables[name.group(1)], word))
    return words


# The files --------------------------------------------------------------------------------------------


def analysed(*arguments: str | Path) -> str:
    """What `systemd-analyze` says of a unit."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd is not installed")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    if "--offline" in done.stderr:
        pytest.skip("this systemd judges no unit that is not installed")
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_understands_every_line_of_a_unit(unit: Path, tmp_path: Path) -> None:
    """Whose program is one that is here."""
    here = tmp_path / unit.name
    here.write_text(unit.read_text().replace(PYTHON, sys.executable).replace("/opt/blackfleet", str(ROOT)))
    assert analysed("verify", "--man=no", here) == ""


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_exposure_of_a_unit_is_small(unit: Path) -> None:
    said = analysed("security", "--offline=true", unit)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert found is not None, said
    assert float(found.group(1)) <= 3.0, said


@pytest.mark.parametrize("name", ["vehicle.env", "vehicle-blackfed.env"])
def test_command_line_of_the_unit_is_one_of_a_vehicle(name: str) -> None:
    variables = {**settings(name), "STATE_DIRECTORY": "/var/lib/blackfleet"}
    program, *words = command_line(VEHICLE, variables)
    assert (program, *words[:2]) == (PYTHON, "-m", "edge_client")
    options = _parse(words[2:])
    assert options.local_head == (None if "blackfed" in name else "/opt/blackfleet/local_head")
    assert (options.data_root, options.state) == ("/data/frames", "/var/lib/blackfleet")
    assert "BLACKFLEET_BROKER" in variables and "BROKER" not in variables


# The processes ----------------------------------------------------------------------------------------


class Supervisor:
    """Hears what a process tells systemd, which wants to be told within 0.4 s."""

    def __init__(self, address: str) -> None:
        self.told: list[str] = []
        self.environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "400000"}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1))
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while told := self._socket.recv(100).decode():
            self.told.append(told)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()


@contextlib.contextmanager
def service(
    unit: Path, variables: Mapping[str, str], address: str, output: Path
) -> Iterator[tuple[subprocess.Popen[bytes], Supervisor]]:
    """The process of a unit, with what its environment file and systemd set."""
    supervisor = Supervisor(address)
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *command_line(unit, variables)[1:]],
            env={**environment(), **variables, **supervisor.environment},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process, supervisor
    finally:
        process.kill()
        process.wait()
        supervisor.close()


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [("vehicle.env", "blackfleet"), ("vehicle-blackfed.env", "blackfed-v2")],
)
def test_units_make_a_fleet_with_the_shipped_environments(
    name: str, algorithm: str, tiny_world: World, tmp_path: Path
) -> None:
    with running_broker("amqtt", tmp_path) as port:
        own = {"BLACKFLEET_BROKER": broker.broker_url(port), "FLEET": "demo"}
        cloud_variables = {
            **own,
            "VEHICLES": "car-01",
            "LABEL_SPACE": "camvid",
            "OPTIONS": f"--algorithm {algorithm} --rounds 1",
            "STATE_DIRECTORY": str(tmp_path),
        }
        has_head = "--local-head" in settings(name)["OPTIONS"]
        variables = {
            **own,
            "VEHICLE": "car-01",
            "BUNDLE": str(tiny_world.bundle),
            "FRAMES": f"--dataset camvid --data-root {tiny_world.data_root}",
            "STATE_DIRECTORY": str(tmp_path / "state"),
            "OPTIONS": f"--local-head {tiny_world.local_head}" if has_head else "",
        }
        assert {*cloud_variables} == {*settings("cloud.env"), "STATE_DIRECTORY"}
        assert {*variables} == {*settings(name), "STATE_DIRECTORY"}
        with (
            service(CLOUD, cloud_variables, f"@blackfleet-{port}", tmp_path / "cloud.log") as (
                cloud,
                of_cloud,
            ),
            service(VEHICLE, variables, str(tmp_path / "n"), tmp_path / "car.log") as (vehicle, of_vehicle),
        ):
            code = vehicle.wait(WAIT_S)
            said = (tmp_path / "car.log").read_text()
            assert code == 0, said
            assert cloud.wait(WAIT_S) == 0, (tmp_path / "cloud.log").read_text()
        assert (tmp_path / "demo" / "result.json").exists()
        assert re.search(r" INFO health: .*MB of disk free\n", said)
        for told in (of_vehicle.told, of_cloud.told):
            assert (told[0], {*told[1:-1]}, told[-1]) == ("READY=1", {"WATCHDOG=1"}, "STOPPING=1")
