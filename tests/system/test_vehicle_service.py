"""The shipped systemd unit: its command, with the environment that its first lines ask for, joins a run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from brokers import running_broker
from fleet_fixtures import World
from process_fixtures import ROOT, WAIT_S, environment, module, start

from edge_client.__main__ import _parse
from fleet import broker

UNIT = (ROOT / "deploy" / "blackfleet-vehicle.service").read_text()


def asked_for() -> dict[str, str]:
    """The environment file as the unit's first lines show it."""
    return dict(re.findall(r"^#   ([A-Z_]+)=(.*)$", UNIT, re.MULTILINE))


def command_line(variables: dict[str, str]) -> list[str]:
    """`ExecStart` as systemd reads it: `${NAME}` is one word, `$NAME` as many as it holds."""
    [line] = re.findall(r"^ExecStart=(.*)$", UNIT.replace("\\\n", " "), re.MULTILINE)
    words: list[str] = []
    for word in line.split():
        if re.fullmatch(r"\$[A-Z_]+", word):
            words += variables.get(word[1:], "").split()
        else:
            words.append(re.sub(r"\$\{([A-Z_]+)\}", lambda name: variables[name.group(1)], word))
    return words


def test_command_line_of_the_unit_is_one_of_a_vehicle() -> None:
    variables = {**asked_for(), "STATE_DIRECTORY": "/var/lib/blackfleet"}
    program, *words = command_line(variables)
    assert (program, *words[:2]) == ("/opt/blackfleet/.venv/bin/python", "-m", "edge_client")
    options = _parse(words[2:])
    assert options.local_head == "/opt/blackfleet/local_head"
    assert options.state == "/var/lib/blackfleet"
    assert "BLACKFLEET_BROKER" in variables and "BROKER" not in variables


@pytest.mark.parametrize("local_head", [True, False], ids=["as shipped", "without a local head"])
def test_unit_serves_the_default_algorithm(local_head: bool, tiny_world: World, tmp_path: Path) -> None:
    with running_broker("amqtt", tmp_path) as port:
        url = broker.broker_url(port)
        cloud = start(
            module(
                "cloud_server",
                *("--broker", url, "--fleet", "demo", "--vehicles", "car-01", "--label-space", "camvid"),
                *("--rounds", "1", "--run-dir", tmp_path / "run"),
            ),
            tmp_path / "cloud.log",
        )
        variables = {
            "FLEET": "demo",
            "VEHICLE": "car-01",
            "BUNDLE": str(tiny_world.bundle),
            "DATASET": "camvid",
            "DATA_ROOT": str(tiny_world.data_root),
            "STATE_DIRECTORY": str(tmp_path / "state"),
            "OPTIONS": f"--local-head {tiny_world.local_head}" if local_head else "",
        }
        assert {*variables, "BLACKFLEET_BROKER"} == {*asked_for(), "STATE_DIRECTORY"}
        try:
            vehicle = subprocess.run(
                [sys.executable, *command_line(variables)[1:]],
                env={**environment(), "BLACKFLEET_BROKER": url},
                capture_output=True,
                text=True,
                timeout=WAIT_S,
            )
            if local_head:
                assert vehicle.returncode == 0, vehicle.stderr
                assert cloud.wait(WAIT_S) == 0, (tmp_path / "cloud.log").read_text()
                assert (tmp_path / "run" / "result.json").exists()
            else:
                assert vehicle.returncode == 2
                assert vehicle.stderr.splitlines()[-1] == (
                    "edge_client: the cloud refuses vehicle 'car-01': this vehicle has no local head "
                    "(--local-head, or local_head in its settings), which this run's algorithm needs "
                    "of every vehicle"
                )
                assert "no local head" in (tmp_path / "cloud.log").read_text()
        finally:
            cloud.kill()
            cloud.wait()
