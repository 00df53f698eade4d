"""What launcher and vehicle say of frames before anything starts."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from fleet_fixtures import CARS, TinyFleet, World
from rich.console import Console

from datasets.frame import DatasetError
from datasets.readers.camvid import CamVidFrames
from edge_client.conversation import Stopped
from edge_client.host import Host
from edge_client.own_frames import check_own_frames
from fleet.errors import OperatorError
from fleet.frames.allocation import Share
from fleet.frames.check import check_shares
from fleet.scenario import Scenario, load_scenario

VOID_ID, ROAD_ID = 11, 3


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """CamVid with eight frames; the labels of the first four are void."""
    for number in range(8):
        for folder, value in (("train", 9), ("trainannot", VOID_ID if number < 4 else ROAD_ID)):
            (tmp_path / folder).mkdir(exist_ok=True)
            assert cv2.imwrite(str(tmp_path / folder / f"A_{number}.png"), np.full((4, 6), value, np.uint8))
    return tmp_path


def scenario_of(data: Path, **changes: object) -> Scenario:
    return load_scenario(
        None, {"dataset.name": "camvid", "dataset.root": str(data), "vehicles": 2, **changes}
    )


def share(train: str, test: str) -> Share:
    """Of frames by their numbers."""
    keys = [tuple(f"A_{number}" for number in part) for part in (train, test)]
    return Share(train=keys[0], val=keys[1], test=keys[1], ood=(), encoder="stride8-c8", sight=None)


def quiet() -> Console:
    return Console(file=io.StringIO())


def test_vehicles_whose_labels_are_void_are_named(data: Path) -> None:
    shares = {"car-01": share("01", "45"), "car-02": share("67", "23")}
    assert check_shares(scenario_of(data), CamVidFrames(data), shares, quiet()) == (
        "all train labels are void of car-01: nothing is learnt from them",
        "all test labels are void of car-02: no score, shown as a dash",
    )


def test_train_labels_that_are_all_void_are_refused_where_they_are_learnt_from(data: Path) -> None:
    shares = {"car-01": share("01", "45"), "car-02": share("23", "67")}
    with pytest.raises(OperatorError, match="all train labels are void: none has a pixel of a camvid class"):
        check_shares(scenario_of(data), CamVidFrames(data), shares, quiet())


def test_labels_that_say_something_are_no_remark(data: Path) -> None:
    shares = {"car-01": share("04", "15"), "car-02": share("26", "37")}
    assert check_shares(scenario_of(data), CamVidFrames(data), shares, quiet()) == ()


def spoil_picture(root: Path) -> str:
    picture = sorted((root / "train").iterdir())[0]
    picture.write_bytes(picture.read_bytes()[:-20])
    return f"{picture}: not a readable image"


def spoil_label(root: Path) -> str:
    label = sorted((root / "trainannot").iterdir())[0]
    assert cv2.imwrite(str(label), np.zeros((2, 3), np.uint8))
    return f"{label}: 3x2 pixels, but its image has"


@pytest.mark.parametrize("spoil", [spoil_picture, spoil_label])
def test_a_vehicle_by_hand_looks_at_its_frames_before_it_connects(
    spoil: Callable[[Path], str], tiny_world: World, tmp_path: Path
) -> None:
    fleet = TinyFleet(tiny_world, tmp_path)
    root = tmp_path / "own"
    for kind in ("train", "trainannot"):
        (root / kind).mkdir(parents=True)
        for path in (tiny_world.data_root / kind).iterdir():
            (root / kind / path.name).write_bytes(path.read_bytes())
    fault = spoil(root)
    config = msgspec.structs.replace(fleet.host(*CARS), data_root=str(root), frames_checked=False)
    with pytest.raises(DatasetError) as error:
        Host(config, lambda *_: pytest.fail("must not connect"), threading.Event())
    assert "1 fault: " + fault in str(error.value)


def test_a_vehicle_by_hand_says_that_its_labels_are_void(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = CamVidFrames(data)
    check_own_frames(frames, ["A_0", "A_5"], threading.Event(), threads=1)
    assert not caplog.messages
    check_own_frames(frames, ["A_0", "A_1"], threading.Event(), threads=1)
    assert "all labels are void: none of the 2 frames has a pixel of a camvid class" in caplog.text


def test_a_vehicle_that_is_stopped_stops_looking(data: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        check_own_frames(CamVidFrames(data), ["A_3"], stop, threads=1)
