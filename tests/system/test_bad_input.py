"""What users get wrong, and what machines do to them: one clear line, exit code 2, nothing lost."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from fleet_fixtures import World
from process_fixtures import (
    Launch,
    Refuse,
    learnt,
    write_scenario,
)

from fleet.run.folder import held

pytestmark = pytest.mark.timeout(300)

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
        (["--image-size", "9x11"], ["8x8", "too small", "stride8-c8"]),
        (["--augment-crop", "1.5"], ["augmentation.crop", "below 1", "got 1.5"]),
        (["--augment-jitter", "-1"], ["augmentation.jitter", "at least 0", "got -1"]),
        (["--augment-flip", "--train-labels", "logits"], ["uploads.train_labels must be input", "logits"]),
        (["--class-weights", "equal"], ["class_weights", "none, balanced", "'equal'"]),
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
        (
            ["--estimator", "oracle"],
            ["zeroth_order.estimator", "activation, region-spsa, spsa-gc", "'oracle'"],
        ),
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
        (["--subspace", "film", "--algorithm", "fedavg"], ["fedavg", "subspace must be all"]),
        (["--subspace", "projection"], ["stride8-c8 has no projection", "must be all or film"]),
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
