"""A broker's password stays where it was given; what a run writes is for its owner."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import yaml
from brokers import running_broker
from process_fixtures import Launch, module, run, write_scenario

from fleet import broker
from fleet.run.folder import write_scenario as keep_scenario
from fleet.scenario import Scenario
from protocol.mqtt.broker_url import parse_broker_url

pytestmark = pytest.mark.timeout(300)

SECRET = "hunter2-is-secret"


def test_a_password_reaches_no_file_no_command_line_and_no_output(tmp_path: Path, frames_root: Path) -> None:
    scenario = tmp_path / "scenario.yaml"
    launch = Launch(tmp_path / "run", scenario)
    with running_broker("amqtt", tmp_path) as port:
        url = f"mqtt://alice:{SECRET}@{broker.HOST}:{port}"
        write_scenario(scenario, frames_root, rounds=1, broker=url)
        try:
            launch.start()
            launch.until("turn", stage=0)
            ids = launch.ids()
            assert set(ids) == {"cloud", "host-01", "host-02"}
            for process_id in ids.values():
                assert SECRET.encode() not in Path(f"/proc/{process_id}/cmdline").read_bytes()
            launch.complete()
        finally:
            launch.stop()
    files = [path for path in launch.run_folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in launch.output.read_text()
    kept = yaml.safe_load((launch.run_folder / "scenario.yaml").read_text())
    assert kept["broker"] == f"mqtt://{broker.HOST}:{port}"
    everything = [launch.run_folder, *launch.run_folder.rglob("*")]
    assert [path for path in everything if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


@pytest.mark.parametrize("name", ["cloud_server", "edge_client"])
def test_a_process_says_that_it_has_no_broker(tmp_path: Path, name: str) -> None:
    options = ("--run-dir", tmp_path / "run") if name == "cloud_server" else ()
    done = run(module(name, "--fleet", "demo", *options))
    assert done.returncode == 2
    assert done.stderr.startswith(f"{name}: --broker missing"), done.stderr


@pytest.mark.parametrize(
    "name", ["auto", "amqtt", "memory", "mqtts://a:b@c.d:8884?ca=ca.crt", "ws://u:p@h/path"]
)
def test_a_kept_scenario_names_the_broker_without_user_and_password(tmp_path: Path, name: str) -> None:
    keep_scenario(tmp_path, Scenario(broker=name))
    kept = yaml.safe_load((tmp_path / "scenario.yaml").read_text())["broker"]
    assert kept == {
        "mqtts://a:b@c.d:8884?ca=ca.crt": f"mqtts://c.d:8884?ca={Path('ca.crt').absolute()}",
        "ws://u:p@h/path": "ws://h:80/path",
    }.get(name, name)


def test_a_broker_url_shows_no_password() -> None:
    url = parse_broker_url(f"mqtt://alice:{SECRET}@host")
    assert url.password == SECRET
    assert SECRET not in repr(url) + str(url)
