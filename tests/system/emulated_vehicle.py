"""`make test-arm64`: a vehicle on an emulated arm64, its cloud and its neighbour on this machine.

The environment is Debian's Python for arm64 and the wheels that pip has for it, below `.arm64/`; QEMU runs it
in user mode. Nothing is compiled, and nothing of it is part of `make test`: the file's name keeps it out.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from brokers import running_broker
from fleet_fixtures import CARS, FLEET, TinyFleet, World
from numpy.typing import NDArray
from packaging.requirements import Requirement
from process_fixtures import ROOT, module, start

from cloud_server.config import PatienceConfig
from fleet import broker

pytestmark = pytest.mark.timeout(900)

BUILT = ROOT / ".arm64"
SYSTEM = BUILT / "root"
RELEASE, PYTHON = "bookworm", "3.11"
PACKAGES = ("protocol", "datasets", "evaluation", "edge_client")
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux2014", "manylinux_2_17")
WAIT_S = 600.0
MOST_RELATIVE_THETA = 5e-3
MOST_MIOU = 0.02


def _tool(name: str, package: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"]))
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install {package}")
    return found


def _requirements(python: str) -> list[str]:
    """What a vehicle needs, in the versions of constraints.txt for a Python on arm64."""
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11 or newer")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            environment = {"python_version": python, "platform_machine": "aarch64"}
            if pin.marker is None or pin.marker.evaluate(environment):
                pins[pin.name.lower()] = f"{pin.name}{pin.specifier}"
    needed = [*project["dependencies"], *project["optional-dependencies"]["vehicle"]]
    return [pins[Requirement(each).name.lower()] for each in needed]


def _pip(python: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """pip for another machine: wheels alone."""
    platforms = [word for name in PLATFORMS for word in ("--platform", f"{name}_aarch64")]
    machine = [*platforms, "--python-version", python, "--implementation", "cp", "--only-binary=:all:"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", *machine, *map(str, arguments)]
    return subprocess.run([*command, *_requirements(python)], capture_output=True, text=True)


@pytest.mark.parametrize("python", ["3.10", "3.12", "3.13"])
def test_every_requirement_has_a_wheel_for_arm64(python: str, tmp_path: Path) -> None:
    """JetPack 6 has Python 3.10, JetPack 7 has 3.12."""
    done = _pip(python, "--dry-run", "--no-deps", "--target", tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def emulated() -> list[str]:
    """The beginning of a command line that runs a Python module on arm64; the code is this checkout's."""
    if platform.machine() in ("aarch64", "arm64"):
        pytest.skip("this machine is an arm64 itself: make test runs on it")
    if os.geteuid() != 0:
        pytest.skip("changing the root folder needs root")
    qemu = _tool("qemu-aarch64-static", "qemu-user-static")
    bootstrap, change_root = _tool("mmdebstrap", "mmdebstrap"), _tool("chroot", "coreutils")
    recipe = " ".join([RELEASE, PYTHON, *_requirements(PYTHON)])
    stamp = BUILT / "built"
    if not stamp.exists() or stamp.read_text() != recipe:
        shutil.rmtree(BUILT, ignore_errors=True)
        BUILT.mkdir()
        names = "--include=python3,libstdc++6,ca-certificates"
        done = subprocess.run(
            [bootstrap, "--arch=arm64", "--variant=extract", names, RELEASE, SYSTEM],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            pytest.skip(f"Debian for arm64 can't be had: {done.stderr.strip().splitlines()[-1]}")
        done = _pip(PYTHON, "--target", SYSTEM / "packages")
        assert done.returncode == 0, done.stderr
        shutil.copy(qemu, SYSTEM / "qemu")
        stamp.write_text(recipe)
    shutil.rmtree(SYSTEM / "app", ignore_errors=True)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, SYSTEM / "app" / name)
    settings = ["PYTHONPATH=/app:/packages", "ORT_DISABLE_TELEMETRY=1", "OMP_NUM_THREADS=1"]
    # Without /sys: ONNX Runtime 1.32 crashes on import where it finds this machine's there.
    program = [change_root, str(SYSTEM), "/qemu", f"/usr/bin/python{PYTHON}"]
    return ["env", "-i", *settings, *program]


def _fleet(world: World, folder: Path, algorithm: str) -> TinyFleet:
    patience = PatienceConfig(join_s=300, retry_s=2, give_up_s=300, heartbeat_s=5, on_failure="stop")
    return TinyFleet(world, folder, algorithm=algorithm, rounds=1, patience=patience)


def _run(fleet: TinyFleet, emulated: list[str] | None) -> float:
    """Run it, the first vehicle on arm64 where that is given; returns the seconds that it took."""
    began = time.monotonic()
    settings = fleet.folder / "cloud.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_bytes(msgspec.json.encode(fleet.config))
    with running_broker("amqtt", fleet.folder) as port:
        url = broker.broker_url(port)
        run = ("--broker", url, "--config", settings, "--run-dir", fleet.run_folder)
        processes = {"cloud": start(module("cloud_server", *run), fleet.folder / "cloud.log")}
        for car in CARS:
            host = msgspec.structs.replace(fleet.host(car), connect_timeout_s=60, retry_s=2, give_up_s=300)
            path, command = fleet.folder / f"{car}.json", [sys.executable]
            content = msgspec.json.encode(host)
            if emulated is not None and car == CARS[0]:
                shutil.rmtree(SYSTEM / "run", ignore_errors=True)
                shutil.copytree(fleet.world.data_root.parent, SYSTEM / "run" / "world")
                for outside, inside in (
                    (fleet.world.data_root.parent, "/run/world"),
                    (fleet.state_folder(car), "/run/state"),
                ):
                    content = content.replace(str(outside).encode(), inside.encode())
                path, command = Path("/run/car.json"), emulated
                (SYSTEM / "run" / "car.json").write_bytes(content)
            else:
                path.write_bytes(content)
            arguments = ["-m", "edge_client", "--broker", url, "--config", str(path)]
            processes[car] = start([*command, *arguments], fleet.folder / f"{car}.log")
        try:
            for name, process in processes.items():
                code = process.wait(WAIT_S)
                assert code == 0, (fleet.folder / f"{name}.log").read_text()[-3000:]
        finally:
            for process in processes.values():
                process.kill()
                process.wait()
    if emulated is not None:
        shutil.copytree(SYSTEM / "run" / "state", fleet.state_folder(CARS[0]))
    return time.monotonic() - began


def _theta(fleet: TinyFleet, car: str) -> tuple[NDArray[np.float32], str]:
    """Of the last turn, and its digest."""
    turns = [int(path.stem.removeprefix("turn-")) for path in fleet.state_folder(car).glob("turn-*.state")]
    theta = fleet.states(car).load(max(turns)).theta
    return theta, hashlib.sha256(theta.tobytes()).hexdigest()[:12]


@pytest.mark.parametrize("algorithm", ["blackfed-v2", "blackfleet"])
def test_vehicle_on_arm64_learns_what_one_on_this_machine_learns(
    algorithm: str, emulated: list[str], tiny_world: World, tmp_path: Path
) -> None:
    here, there = (_fleet(tiny_world, tmp_path / name, algorithm) for name in ("here", "there"))
    seconds = _run(here, None), _run(there, emulated)
    print(
        f"\n{algorithm} of fleet {FLEET}: {seconds[0]:.0f} s here, {seconds[1]:.0f} s with {CARS[0]} on arm64"
    )
    print(" vehicle   θ here        θ there       relative difference   mIoU here   there")
    for car in CARS:
        (ours, our_digest), (theirs, their_digest) = _theta(here, car), _theta(there, car)
        relative = float(np.linalg.norm(ours - theirs) / np.linalg.norm(ours))
        miou, their_miou = (run.result()["vehicles"][car]["local_miou"] for run in (here, there))
        print(f" {car:9} {our_digest}  {their_digest}  {relative:19.1e}   {miou:9.4f}   {their_miou:.4f}")
        assert relative < MOST_RELATIVE_THETA
        assert abs(miou - their_miou) < MOST_MIOU
