"""Vehicle processes that fail in a fleet of real ones: who goes on, who stops, and with which exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from brokers import running_broker
from fleet_fixtures import CARS, TinyFleet, World
from process_fixtures import WAIT_S, Launch, module, start, write_scenario

from cloud_server.config import PatienceConfig
from fleet import broker
from fleet.errors import OperatorError
from fleet.run import processes as processes_of_fleet
from fleet.run.processes import ProcessSpec, ProcessTable

pytestmark = pytest.mark.timeout(300)

WELL, ILL = CARS
TINY_DISK_BYTES = 16_384
"""Less than what a vehicle keeps of its encoder, more than what it says."""


class Processes:
    """Cloud and vehicle processes of a tiny fleet, started by hand."""

    def __init__(self, fleet: TinyFleet, folder: Path, port: int) -> None:
        self.fleet = fleet
        self._folder = folder
        self._url = broker.broker_url(port)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start_cloud(self) -> None:
        config = self._folder / "cloud.json"
        config.write_bytes(msgspec.json.encode(self.fleet.config))
        self._start("cloud", "cloud_server", config, "--run-dir", self.fleet.run_folder)

    def start_host(self, car: str, *, limit_file_bytes: int | None = None) -> None:
        config = self._folder / f"{car}.json"
        config.write_bytes(msgspec.json.encode(self.fleet.host(car)))
        self._start(car, "edge_client", config, limit_file_bytes=limit_file_bytes)

    def _start(
        self, name: str, package: str, config: Path, *more: str | Path, limit_file_bytes: int | None = None
    ) -> None:
        command = module(package, "--broker", self._url, "--config", config, *more)
        self._running[name] = start(command, self._folder / f"{name}.log", limit_file_bytes=limit_file_bytes)

    def end(self, name: str) -> tuple[int, str]:
        """Exit code and last line of a process that ends by itself."""
        code = self._running[name].wait(WAIT_S)
        return code, (self._folder / f"{name}.log").read_text().splitlines()[-1]

    def close(self) -> None:
        for process in self._running.values():
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    with running_broker("amqtt", tmp_path / "broker") as port:
        yield port


@pytest.mark.parametrize("on_failure", ["stop", "continue"])
def test_vehicle_with_a_full_disk(tiny_world: World, tmp_path: Path, port: int, on_failure: str) -> None:
    patience = PatienceConfig(join_s=60, retry_s=0.5, give_up_s=60, heartbeat_s=0.5, on_failure=on_failure)
    fleet = TinyFleet(tiny_world, tmp_path, rounds=1, patience=patience)
    processes = Processes(fleet, tmp_path, port)
    try:
        processes.start_cloud()
        processes.start_host(WELL)
        processes.start_host(ILL, limit_file_bytes=TINY_DISK_BYTES)
        code, said = processes.end(ILL)
        assert code == 2 and "edge_client: " in said and "File too large" in said, said
        code, said = processes.end("cloud")
        if on_failure == "stop":
            assert code == 2 and "vehicle 'car-2' can't go on: " in said and "File too large" in said, said
            return
        assert code == 0, said
        assert processes.end(WELL)[0] == 0
        assert "File too large" in fleet.result()["failed"][ILL]
        assert fleet.result()["vehicles"][WELL]["local_miou"] is not None
    finally:
        processes.close()


def test_launched_run_goes_on_without_a_process_that_stands_still_and_does_not_take_it_back(
    tmp_path: Path, reference: Launch
) -> None:
    data_root = Path(msgspec.yaml.decode(reference.scenario.read_bytes())["dataset"]["root"])
    scenario = write_scenario(
        tmp_path / "scenario.yaml", data_root, patience={"give_up_s": 15, "on_failure": "continue"}
    )
    launch = Launch(tmp_path / "run", scenario)
    try:
        launch.start("--broker", "amqtt")
        launch.until("turn", stage=1)
        os.kill(launch.ids()["host-02"], signal.SIGSTOP)
        launch.until("failed", vehicle="car-02")
        os.kill(launch.ids()["host-02"], signal.SIGCONT)
        launch.complete()
    finally:
        launch.stop()
    result = launch.result()
    assert list(result["failed"]) == ["car-02"]
    assert "without what has failed" in launch.output.read_text()


def test_process_that_comes_back_is_tried_again_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes_of_fleet, "_LONGEST_PAUSE_S", 0.1)
    mended, over = tmp_path / "mended", tmp_path / "over"
    host = f"import sys, pathlib; sys.exit(0 if pathlib.Path({str(mended)!r}).exists() else 2)"
    cloud = f"import time, pathlib\nwhile not pathlib.Path({str(over)!r}).exists(): time.sleep(0.02)"
    table = [
        ProcessSpec(name="cloud", command=[sys.executable, "-c", cloud], leads=True),
        ProcessSpec(name="host-1", command=[sys.executable, "-c", host], comes_back=True),
    ]
    told: list[str] = []
    with ProcessTable(table, tmp_path, lambda name, **_: told.append(name)) as processes:
        while processes.check():
            if told.count("crashed") == 4:  # more often than a fault is forgiven
                mended.touch()
                over.touch()


def test_fleet_whose_processes_have_all_failed_ends(tmp_path: Path) -> None:
    def process(name: str, program: str, *, leads: bool) -> ProcessSpec:
        command = [sys.executable, "-c", program]
        return ProcessSpec(name=name, command=command, leads=leads, may_fail=not leads)

    table = [process("cloud", "import time; time.sleep(60)", leads=True)]
    for number in (1, 2):
        program = "import sys; sys.stderr.write('no disk'); sys.exit(2)"
        table.append(process(f"host-{number}", program, leads=False))
    with ProcessTable(table, tmp_path) as processes, pytest.raises(OperatorError, match=r"every .*: no disk"):
        while processes.check():
            pass
