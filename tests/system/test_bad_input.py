"""What users get wrong, and what machines do to them: one clear line, exit code 2, nothing lost."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from brokers import running_broker
from fleet_fixtures import World
from process_fixtures import ROOT, Launch, learnt, module, run, start, wait_for, write_scenario

from fleet import broker
from fleet.cli import app as cli
from fleet.export.bundle import export_bundle
from fleet.run.folder import held

pytestmark = pytest.mark.timeout(300)

Refuse = Callable[..., str]
"""Runs `blackfleet` with arguments, checks that it refuses, and gives its one line."""


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Refuse:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def refuse(*arguments: str | Path) -> str:
        monkeypatch.setattr("sys.argv", ["blackfleet", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ending:
            cli.main()
        error = capfd.readouterr().err
        assert ending.value.code == 2, error
        return one_line(error, "blackfleet: ")

    return refuse


def one_line(text: str, beginning: str) -> str:
    """The only line of `text`."""
    lines = text.splitlines()
    assert len(lines) == 1, text
    assert lines[0].startswith(beginning), text
    return lines[0]


# What the scenario says --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--vehicles", "0"], ["at least 1", "got 0"]),
        (["--vehicles", "-3"], ["at least 1", "got -3"]),
        (["--rounds", "0"], ["rounds", "at least 1", "got 0"]),
        (["--bits", "7"], ["bits", "32, 8, 6, 4, 3, 2", "got 7"]),
        (["--train-labels", "small"], ["uploads.train_labels", "input, logits", "'small'"]),
        (["--frame-bytes", "0"], ["frame_bytes", "at least 1", "got 0"]),
        (["--frame-bytes", "900"], ["frame_bytes", "at least 1630", "8x24x32", "2 bits", "got 900"]),
        (["--frame-bytes", "3000", "--bits", "32"], ["frame_bytes", "8 or fewer", "got 32"]),
        (
            ["--frame-bytes", "2000", "--vehicles", "2", "--vehicle-encoder", "car-02=stride8-c16"],
            ["frame_bytes", "16x24x32", "got 2000"],
        ),
        (["--seed", "-1"], ["seed", "got -1"]),
        (["--image-size", "256"], ["WIDTHxHEIGHT", "256x192", "'256'"]),
        (["--image-size", "0x48"], ["WIDTHxHEIGHT", "'0x48'"]),
        (["--image-size", "8x8"], ["8x8", "too small", "stride8-c8", "16x8"]),
        (["--image-size", "4x4", "--encoder", "stride4-c8"], ["4x4", "too small", "stride4-c8", "8x4"]),
        (["--image-size", "60x48"], ["60x48", "stride8-c8", "multiples of 8"]),
        (["--algorithm", "blackfed-v3"], ["algorithm", "'blackfed-v3'", "blackfed-v2"]),
        (["--encoder", "resnet"], ["encoder", "'resnet'", "stride8-c8"]),
        (["--encoder-mode", "fast"], ["'fast'", "bind", "rebuild"]),
        (["--network", "unet"], ["network", "'unet'", "compact"]),
        (["--partition", "country"], ["partition", "'country'", "city"]),
        (["--dataset", "kitti"], ["dataset", "'kitti'", "camvid"]),
        (["--dataset", "camvid"], ["camvid", "--data-root"]),
        (["--frames-per-vehicle", "2"], ["at least 3", "got 2"]),
        (["--broker", "http://localhost"], ["mqtt://", "'http://localhost'"]),
        (["--broker-port", "70000"], ["1", "65535", "70000"]),
        (["--queries", "0"], ["queries", "at least 1", "got 0"]),
        (["--queries", "129"], ["max_answers_per_frame is 256", "spsa-gc asks for 258"]),
        (["--estimator", "oracle"], ["zeroth_order.estimator", "activation, spsa-gc", "'oracle'"]),
        (["--weight-power", "-1"], ["local_loss.weight_power", "at least 0", "got -1"]),
        (["--serving", "newest"], ["blackfleet.serving", "best, latest, statistics", "'newest'"]),
        (["--subspace", "half"], ["subspace", "all, film", "'half'"]),
        (["--objective", "mood"], ["objective", "labels, entropy", "'mood'"]),
        (
            ["--objective", "entropy", "--algorithm", "blackfed-v2"],
            ["objective entropy", "--no-network-learns", "collapses"],
        ),
        (
            ["--objective", "entropy", "--no-network-learns", "--algorithm", "blackfleet"],
            ["blackfleet", "local head", "objective must be labels"],
        ),
        (["--no-network-learns", "--algorithm", "fedavg"], ["fedavg", "network.learns must be true"]),
        (["--no-network-learns", "--algorithm", "centralized"], ["centralized", "must be true, got false"]),
        (["--subspace", "film", "--algorithm", "centralized"], ["centralized", "subspace must be all"]),
    ],
    ids=" ".join,
)
def test_options_that_make_no_run_are_refused_before_anything_is_done(
    refuse: Refuse, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    line = refuse("launch", "--run-dir", tmp_path / "run", *options)
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("vehicels: 3\n", ["unknown key vehicels", "did you mean 'vehicles'"]),
        ("first_order: {epoch: 3}\n", ["unknown key first_order.epoch", "did you mean 'epochs'"]),
        ("zoo: 1\n", ["unknown key zoo", "known keys", "zeroth_order"]),
        ("vehicles: many\n", ["vehicles", "int", "str"]),
        ("rounds: 1.5\n", ["rounds", "int", "float"]),
        ("bits: 4\n", ["unknown key bits", "it is now coding.bits"]),
        ("zeroth_order: {activation: {seeds: 2}}\n", ["zeroth_order.activation", "it is now activation"]),
        ("first_order: 3\n", ["first_order", "object", "int"]),
        ("first_order: {schedule: linear}\n", ["first_order.schedule", "'linear'", "cosine"]),
        ("first_order: {loss: focal}\n", ["first_order.loss", "'focal'", "cross-entropy"]),
        ("first_order: {rate: .nan}\n", ["first_order.rate", "above 0", "nan"]),
        ("first_order: {replay_steps: -1}\n", ["first_order.replay_steps", "at least 0", "-1"]),
        (
            "first_order: {replay_steps: 1, cache_frames: 4}\n",
            ["first_order.cache_frames", "at least", "got 4"],
        ),
        ("activation: {box_width: 2}\n", ["activation.box_width", "odd", "got 2"]),
        ("activation: {seed: 2}\n", ["unknown key activation.seed", "'seeds'"]),
        ("fleet: a/b\n", ["fleet id", "'a/b'"]),
        ("- vehicles\n", ["table of keys", "list"]),
        ("vehicles: [3\n", ["not YAML"]),
        ("\x00", ["not YAML"]),
    ],
    ids=repr,
)
def test_a_scenario_that_makes_no_run_is_refused_by_name(
    refuse: Refuse, tmp_path: Path, content: str, words: list[str]
) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(content)
    line = refuse("launch", "--scenario", path, "--run-dir", tmp_path / "run")
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def test_a_scenario_file_that_is_missing_is_named(refuse: Refuse, tmp_path: Path) -> None:
    line = refuse("launch", "--scenario", tmp_path / "none.yaml", "--run-dir", tmp_path / "run")
    assert f"{tmp_path}/none.yaml" in line
    assert "No such file" in line


# Folders -----------------------------------------------------------------------------------------------


def test_resume_without_a_run_says_where_there_is_none(refuse: Refuse, tmp_path: Path) -> None:
    line = refuse("launch", "--resume", "--run-dir", tmp_path / "run")
    assert f"{tmp_path}/run holds no run to resume" in line
    assert "--run-dir" in refuse("launch", "--resume")


def test_a_run_folder_that_holds_a_run_is_not_overwritten(refuse: Refuse, reference: Launch) -> None:
    before = learnt(reference.run_folder)
    line = refuse("launch", "--scenario", reference.scenario, "--run-dir", reference.run_folder)
    assert "--resume" in line
    assert learnt(reference.run_folder) == before


def test_a_run_folder_in_which_another_launcher_works_is_left_alone(
    refuse: Refuse, tmp_path: Path, reference: Launch
) -> None:
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    shutil.copy(reference.scenario, run_folder / "scenario.yaml")
    with held(run_folder):
        line = refuse("launch", "--resume", "--run-dir", run_folder)
    assert f"another launcher is at work in {run_folder}" in line


def test_an_unwritable_run_folder_is_named(refuse: Refuse, tmp_path: Path) -> None:
    # Not by permissions, which root ignores.
    (tmp_path / "file").touch()
    line = refuse("launch", "--run-dir", tmp_path / "file" / "run")
    assert f"{tmp_path}/file/run" in line
    assert "Not a directory; choose another folder" in line


# Data --------------------------------------------------------------------------------------------------


@pytest.fixture
def camvid_copy(tiny_world: World, tmp_path: Path) -> Path:
    """A small CamVid-layout data set to spoil."""
    return shutil.copytree(tiny_world.data_root, tmp_path / "camvid")


@pytest.mark.parametrize("dataset", ["camvid", "cityscapes"])
def test_a_missing_data_folder_is_named_with_how_to_get_the_data(
    refuse: Refuse, tmp_path: Path, dataset: str
) -> None:
    run_folder = tmp_path / "run"
    line = refuse("launch", "--dataset", dataset, "--data-root", tmp_path / "none", "--run-dir", run_folder)
    assert f"{tmp_path}/none" in line
    assert "dataset generate" in line
    # The same command can be given again with the right folder.
    assert not (run_folder / "scenario.yaml").exists()


def test_an_image_without_label_is_named(refuse: Refuse, tmp_path: Path, camvid_copy: Path) -> None:
    label = sorted((camvid_copy / "trainannot").iterdir())[3]
    label.unlink()
    run_folder = tmp_path / "run"
    line = refuse("launch", "--dataset", "camvid", "--data-root", camvid_copy, "--run-dir", run_folder)
    assert label.name in line
    assert not (run_folder / "scenario.yaml").exists()


def test_more_vehicles_than_frames_are_counted(refuse: Refuse, tmp_path: Path, camvid_copy: Path) -> None:
    run_folder = tmp_path / "run"
    arguments = ("launch", "--dataset", "camvid", "--data-root", camvid_copy, "--run-dir", run_folder)
    line = refuse(*arguments, "--vehicles", "7")
    assert "7 vehicles need at least 21 frames" in line
    assert "got 20" in line
    assert not (run_folder / "scenario.yaml").exists()


def test_a_label_with_an_unknown_id_ends_the_run_with_its_name(
    refuse: Refuse, tmp_path: Path, camvid_copy: Path
) -> None:
    label = sorted((camvid_copy / "trainannot").iterdir())[0]
    label_HW = cv2.imread(str(label), cv2.IMREAD_UNCHANGED)
    label_HW[0, 0] = 77
    cv2.imwrite(str(label), label_HW)
    scenario = write_scenario(tmp_path / "scenario.yaml", camvid_copy, dataset={"name": "camvid"})
    line = refuse("launch", "--scenario", scenario, "--run-dir", tmp_path / "run")
    assert str(label) in line
    assert "77" in line


def test_all_faulty_frames_are_named_before_anything_starts(
    refuse: Refuse, tmp_path: Path, camvid_copy: Path
) -> None:
    images = sorted((camvid_copy / "train").iterdir())[:3]
    for image in images:
        image.write_bytes(image.read_bytes()[:-30])
    label = camvid_copy / "trainannot" / sorted((camvid_copy / "train").iterdir())[5].name
    cv2.imwrite(str(label), np.zeros((5, 7), np.uint8))
    scenario = write_scenario(tmp_path / "scenario.yaml", camvid_copy, dataset={"name": "camvid"})
    line = refuse("launch", "--scenario", scenario, "--run-dir", tmp_path / "run")
    assert "4 faults" in line and "7x5 pixels, but its image has" in line
    assert all(f"{image}: not a readable image" in line and "cut off" in line for image in images)
    assert not (tmp_path / "run" / "scenario.yaml").exists()
    assert not (tmp_path / "run" / "hosts").exists()


def test_a_run_whose_train_labels_are_all_void_is_refused(
    refuse: Refuse, tmp_path: Path, camvid_copy: Path
) -> None:
    for label in (camvid_copy / "trainannot").iterdir():
        cv2.imwrite(str(label), np.full_like(cv2.imread(str(label), cv2.IMREAD_UNCHANGED), 11))
    scenario = write_scenario(tmp_path / "scenario.yaml", camvid_copy, dataset={"name": "camvid"})
    line = refuse("launch", "--scenario", scenario, "--run-dir", tmp_path / "run")
    assert "all train labels are void: none has a pixel of a camvid class" in line


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


def test_a_broker_that_vanishes_for_good_ends_the_run_which_another_broker_resumes(
    tmp_path: Path, frames_root: Path, reference: Launch
) -> None:
    # Long enough for a vehicle to wait until the cloud has started.
    scenario = write_scenario(tmp_path / "scenario.yaml", frames_root, patience={"give_up_s": 15})
    launch = Launch(tmp_path / "run", scenario)
    try:
        with running_broker("amqtt", tmp_path) as port:
            launch.start("--broker", broker.broker_url(port))
            launch.until("learning", stage=2)
        assert launch.wait() == 2
        line = launch.output.read_text().splitlines()[-1]
        assert line.startswith("blackfleet: ")
        assert "the broker has been unreachable for" in line
        assert "Traceback" not in launch.report()

        launch.start("--resume").complete()
    finally:
        launch.stop()
    assert learnt(launch.run_folder) == learnt(reference.run_folder)


# Disks -------------------------------------------------------------------------------------------------


def test_a_full_disk_ends_the_run_which_goes_on_when_there_is_room(tmp_path: Path, reference: Launch) -> None:
    """The limit lets the first checkpoint pass, and not the one with the optimizer's moments in it."""
    checkpoint_bytes = max(
        path.stat().st_size for path in (reference.run_folder / "cloud" / "checkpoints").iterdir()
    )
    launch = Launch(tmp_path / "run", reference.scenario)
    try:
        launch.start(limit_file_bytes=checkpoint_bytes // 2)
        assert launch.wait() == 2
        line = launch.output.read_text().splitlines()[-1]
        assert line.startswith("blackfleet: cloud_server: ")
        assert f"{launch.run_folder}/cloud" in line
        assert "Traceback" not in launch.report()

        launch.start("--resume").complete()
    finally:
        launch.stop()
    assert learnt(launch.run_folder) == learnt(reference.run_folder)


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
                *("--label-space", "camvid", "--run-dir", tmp_path / "run"),
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


@pytest.mark.parametrize(
    "command", ["launch --run-dir", "pretrain", "compare --algorithms split --compare-dir"]
)
def test_run_folder_whose_name_is_no_text_is_refused(
    refuse: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refuse(*command.split(), os.fsdecode(b"run-\xff[/x]"))
    assert "the name of the folder run-" in line and "[/x]" in line
    assert line.endswith("holds bytes that are no UTF-8 text; choose another one")
