"""A fleet without the launcher: broker, cloud and vehicles started one by one, in any order."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import running_broker
from process_fixtures import WAIT_S, module, run, start, wait_for

from cloud_server.config import CloudConfig
from fleet import broker

pytestmark = pytest.mark.timeout(300)

LOST = re.compile(r"session with \S+ (lost|is back)")
"""What a process says that lost its connection."""
CARS = ("alpha", "beta")


class HandMade:
    """What an operator types, one command a process; ends what still runs."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.run_folder = folder / "cloud-run"
        self.port = port
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, process: str | None = None) -> None:
        """Start the broker, the cloud or a vehicle; a second one is called `process`."""
        process = process or name
        url = f"mqtt://127.0.0.1:{self.port}"
        commands = {
            "broker": module("fleet.broker", "--port", str(self.port), "--workdir", self.folder / "broker"),
            "cloud": module(
                "cloud_server",
                *("--broker", url, "--fleet", "hand", "--vehicles", ",".join(CARS)),
                *("--algorithm", "blackfed-v2", "--rounds", "1", "--run-dir", self.folder / f"{process}-run"),
            ),
        }
        if name in CARS:
            command = module(
                "edge_client",
                *("--broker", url, "--fleet", "hand", "--vehicle", name),
                *("--bundle", self.folder / "bundle", "--data-root", self.folder / name),
                *("--state", self.folder / "state" / process),
            )
        else:
            command = commands[name]
        self._processes[process] = start(command, self.output(process))

    def output(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def end(self, name: str) -> int:
        """The exit code of a process that ends by itself."""
        return self._processes[name].wait(WAIT_S)

    def stop(self, name: str) -> int:
        """The exit code after SIGTERM."""
        self._processes[name].send_signal(signal.SIGTERM)
        return self.end(name)

    def close(self) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each vehicle's own drive and an encoder bundle, made by the commands that the documents name."""
    folder = tmp_path_factory.mktemp("prepared")
    size = ("--image-size", "64x48")
    for seed, car in enumerate(CARS):
        arguments = ("dataset", "generate", folder / car, "--cities", "1", "--frames", "6", *size)
        done = run(module("fleet.cli", *arguments, "--seed", str(seed)))
        assert done.returncode == 0, done.stderr
        assert "6 frames in" in done.stdout
    done = run(module("fleet.cli", "encoder", "export", folder / "bundle", "--encoder", "stride8-c4", *size))
    assert done.returncode == 0, done.stderr
    assert "features 4x6x8" in done.stdout
    return folder


@pytest.fixture
def hand_made(prepared: Path, tmp_path: Path) -> Iterator[HandMade]:
    for name in (*CARS, "bundle"):
        shutil.copytree(prepared / name, tmp_path / name)
    made = HandMade(tmp_path, broker.free_port())
    yield made
    made.close()


def test_processes_started_by_hand_in_any_order_form_a_fleet(hand_made: HandMade) -> None:
    for name in (CARS[1], "cloud", "broker", CARS[0]):
        hand_made.start(name)
    for name in ("cloud", *CARS):
        assert hand_made.end(name) == 0, hand_made.output(name).read_text()
    assert hand_made.stop("broker") == 0
    result = json.loads((hand_made.run_folder / "result.json").read_text())
    assert set(result["vehicles"]) == set(CARS)
    assert 0 <= result["mean_local_miou"] <= 1
    # A vehicle in the field knows only its own frames.
    assert result["mean_ood_miou"] is None


def _refused(hand_made: HandMade, process: str) -> str:
    """The last line of a process that must end with exit code 2."""
    assert hand_made.end(process) == 2, hand_made.output(process).read_text()
    return hand_made.output(process).read_text().splitlines()[-1]


def test_second_cloud_and_the_copy_of_a_vehicle_are_refused_and_the_run_goes_on(
    hand_made: HandMade, tmp_path: Path
) -> None:
    with running_broker("amqtt", tmp_path) as hand_made.port:
        hand_made.start("cloud")
        hand_made.start("alpha")
        wait_for(lambda: "welcome to the fleet" in hand_made.output("alpha").read_text(), "alpha has joined")
        hand_made.start("cloud", "second cloud")
        hand_made.start("alpha", "copy of alpha")
        assert _refused(hand_made, "second cloud") == (
            "cloud_server: fleet 'hand' has a cloud already, which is alive; stop it, or give this run a "
            "fleet name of its own"
        )
        assert _refused(hand_made, "copy of alpha") == (
            "edge_client: the cloud refuses vehicle 'alpha': another process of this vehicle is at work; "
            "stop it, or give this one an id of its own"
        )
        hand_made.start("beta")
        for name in ("cloud", *CARS):
            assert hand_made.end(name) == 0, hand_made.output(name).read_text()
    assert not LOST.search(hand_made.output("alpha").read_text())


def test_processes_that_wait_for_a_broker_stop_when_told(hand_made: HandMade) -> None:
    for name in ("cloud", CARS[0]):
        hand_made.start(name)
    wait_for(lambda: "runs a changed" in hand_made.output(CARS[0]).read_text(), "the vehicle is up")
    wait_for(lambda: (hand_made.run_folder / "tensorboard").is_dir(), "the cloud is up")
    assert [hand_made.stop(name) for name in ("cloud", CARS[0])] == [130, 130]


def test_help_of_the_cloud_states_the_defaults_that_hold() -> None:
    said = " ".join(run(module("cloud_server", "--help")).stdout.split())
    config = CloudConfig(fleet="f", vehicles=("a",))
    for text in (f"default {config.algorithm}", f"(default {config.rounds})", f"(default {config.seed})"):
        assert text in said


@pytest.mark.parametrize("name", ["edge_client", "cloud_server", "fleet.broker"])
def test_help_of_a_process_names_its_options(name: str) -> None:
    done = run(module(name, "--help"))
    assert done.returncode == 0, done.stderr
    assert "usage: python -m" in done.stdout
    assert "--" in done.stdout
