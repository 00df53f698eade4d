"""What machines do to a run, its broker, its disk and its vehicles: one clear line, nothing lost."""

from __future__ import annotations

import shutil
import signal
import socket
from pathlib import Path

import pytest
from brokers import running_broker
from fleet_fixtures import World
from process_fixtures import (
    Launch,
    Refuse,
    learnt,
    module,
    run,
    start,
    wait_for,
    write_scenario,
)

from fleet import broker
from fleet.export.bundle import export_bundle

pytestmark = pytest.mark.timeout(300)


# Brokers -----------------------------------------------------------------------------------------------


def test_a_port_in_use_is_named(refuse: Refuse, tmp_path: Path, reference: Launch) -> None:
    with socket.socket() as other:
        other.bind((broker.HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        line = refuse(
            *("launch", "--scenario", reference.scenario, "--run-dir", tmp_path / "run"),
            *("--broker", "amqtt", "--broker-port", str(port)),
        )
    assert f"port {port} can't be used (Address already in use)" in line


def test_an_unreachable_broker_is_named(refuse: Refuse, tmp_path: Path, frames_root: Path) -> None:
    scenario = write_scenario(tmp_path / "scenario.yaml", frames_root, patience={"join_s": 1})
    url = broker.broker_url(broker.free_port())
    line = refuse("launch", "--scenario", scenario, "--broker", url, "--run-dir", tmp_path / "run")
    assert f"no MQTT session with {url}: none within 1 s (connection refused)" in line
    assert "give another broker URL" in line
    assert not (tmp_path / "run").exists()


def test_a_run_that_loses_its_broker_and_then_has_no_room_goes_on_when_there_are_both(
    tmp_path: Path, frames_root: Path, reference: Launch
) -> None:
    # Long enough for a vehicle to wait until the cloud has started.
    scenario = write_scenario(tmp_path / "scenario.yaml", frames_root, patience={"give_up_s": 15})
    launch = Launch(tmp_path / "run", scenario)
    try:
        with running_broker("amqtt", tmp_path) as port:
            launch.start("--broker", broker.broker_url(port))
            launch.until("learning", stage=2)
        line = _last_line(launch)
        assert line.startswith("blackfleet: ")
        assert "the broker has been unreachable for" in line

        # Another broker, but no room for a checkpoint with the optimizer's moments in it, as the newest has.
        checkpoints = launch.run_folder / "cloud" / "checkpoints"
        largest_bytes = max(path.stat().st_size for path in checkpoints.iterdir())
        launch.start("--resume", limit_file_bytes=largest_bytes // 2)
        line = _last_line(launch)
        assert line.startswith("blackfleet: cloud_server: ")
        assert f"{launch.run_folder}/cloud" in line

        launch.start("--resume").complete()
    finally:
        launch.stop()
    assert learnt(launch.run_folder) == learnt(reference.run_folder)


def _last_line(launch: Launch) -> str:
    """Of a launcher that must end by itself with a mistake."""
    assert launch.wait() == 2
    assert "Traceback" not in launch.report()
    return launch.output.read_text().splitlines()[-1]


# Disks -------------------------------------------------------------------------------------------------


def test_a_corrupt_checkpoint_is_named_and_the_one_before_it_resumes(
    refuse: Refuse, tmp_path: Path, reference: Launch
) -> None:
    launch = Launch(tmp_path / "run", reference.scenario)
    shutil.copytree(reference.run_folder, launch.run_folder)
    (launch.run_folder / "result.json").unlink()
    newest = max((launch.run_folder / "cloud" / "checkpoints").iterdir())
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    line = refuse("launch", "--resume", "--run-dir", launch.run_folder)
    assert f"{newest} is damaged" in line
    assert "remove" in line

    newest.unlink()
    try:
        launch.start("--resume").complete()
    finally:
        launch.stop()
    assert learnt(launch.run_folder) == learnt(reference.run_folder)


# Vehicles by hand ----------------------------------------------------------------------------------------


def test_a_corrupt_bundle_is_named(tmp_path: Path, tiny_world: World) -> None:
    bundle = shutil.copytree(tiny_world.bundle, tmp_path / "bundle")
    graph = bundle / "forward.onnx"
    graph.write_bytes(graph.read_bytes()[:-7])
    done = run(vehicle_command(tiny_world, tmp_path, bundle, "mqtt://127.0.0.1:1"))
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith("edge_client: ")
    assert f"corrupt encoder bundle {bundle}: forward.onnx" in line
    assert "encoder export" in line
    assert "Traceback" not in done.stderr


def test_a_bundle_of_another_shape_than_the_cloud_expects_ends_its_vehicle_alone(
    tmp_path: Path, tiny_world: World
) -> None:
    export_bundle("stride8-c8", tmp_path / "other", image_size=(64, 48), seed=0)
    with running_broker("amqtt", tmp_path) as port:
        url = broker.broker_url(port)
        cloud = start(
            module(
                "cloud_server",
                *("--broker", url, "--fleet", "hand", "--vehicles", "car-1,car-2"),
                *("--label-space", "camvid", "--run-dir", tmp_path / "run", "--algorithm", "blackfed-v2"),
            ),
            tmp_path / "cloud.log",
        )
        first = start(vehicle_command(tiny_world, tmp_path, tiny_world.bundle, url), tmp_path / "car-1.log")
        try:
            wait_for(lambda: "welcome" in (tmp_path / "car-1.log").read_text(), "car-1 is welcome")
            done = run(vehicle_command(tiny_world, tmp_path, tmp_path / "other", url, vehicle="car-2"))
            assert done.returncode == 2
            line = done.stderr.splitlines()[-1]
            assert line.startswith("edge_client: the cloud refuses vehicle 'car-2': ")
            assert "8x6x8" in line
            assert "4x6x8" in line
            assert (cloud.poll(), first.poll()) == (None, None)
        finally:
            for process in (first, cloud):
                process.send_signal(signal.SIGTERM)
            codes = [process.wait(30) for process in (first, cloud)]
    assert codes == [130, 130]


def vehicle_command(world: World, folder: Path, bundle: Path, url: str, vehicle: str = "car-1") -> list[str]:
    return module(
        "edge_client",
        *("--broker", url, "--fleet", "hand", "--vehicle", vehicle, "--bundle", bundle),
        *("--dataset", "camvid", "--data-root", world.data_root, "--state", folder / "state" / vehicle),
    )
