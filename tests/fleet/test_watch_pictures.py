"""Pictures of frames that are not at hand: what the cloud has kept of a vehicle while the run goes on."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from datasets.labels import CAMVID, VOID
from evaluation.latest import FOLDER_NAME, MOST_VEHICLES, LatestFrames
from fleet.errors import OperatorError
from fleet.watch.pictures import Pictures
from protocol.errors import Mistake

TRUTH_HW = np.repeat(np.array([[0, 1], [2, VOID]], np.uint8), 1500, axis=1).repeat(600, axis=0)
"""Larger than what is kept of it."""
WRONG_HW = np.where(TRUTH_HW == 1, 3, TRUTH_HW).astype(np.uint8)


def keep(folder: Path, vehicles: list[str], stage: int = 4) -> LatestFrames:
    latest = LatestFrames(folder, vehicles, "camvid")
    for vehicle in vehicles:
        latest.keep_predictions(vehicle, stage, "val", [("a ../b", TRUTH_HW, WRONG_HW)])
    return latest


def drawn(pictures: Pictures, kind: str) -> NDArray[np.uint8]:
    jpeg = np.frombuffer(pictures.draw("car-1", "a ../b", kind), np.uint8)
    return np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR)[:, :, ::-1], np.uint8)


def test_fleet_of_real_cars_shows_what_the_cloud_has_and_no_frame(tmp_path: Path) -> None:
    keep(tmp_path, ["car-1"]).keep_loss_maps(
        "car-1", 3, [("c", TRUTH_HW, np.array([[0.0, 2.0]], np.float32))]
    )
    pictures = Pictures(tmp_path)
    shown = pictures.of("car-1")
    assert [(frame["key"], frame["split"], frame["stage"]) for frame in shown["frames"]] == [
        ("a ../b", "val", 4),
        ("c", "train", 3),
    ]
    assert [frame["kinds"] for frame in shown["frames"]] == [
        ["truth", "prediction", "errors"],
        ["truth", "loss"],
    ]
    assert shown["frames"][1]["most_loss"] == 2.0
    assert len(shown["classes"]) == CAMVID.num_classes
    height, width = drawn(pictures, "truth").shape[:2]
    corner = (slice(5, height // 2 - 5), slice(width // 2 + 5, width - 5))
    for kind, colour in (("truth", CAMVID.palette_rgb[1]), ("prediction", CAMVID.palette_rgb[3])):
        assert np.abs(drawn(pictures, kind)[corner] - np.asarray(colour, float)).max() < 20
    errors = drawn(pictures, "errors").astype(float)
    red = errors[:, :, 0] - errors[:, :, 1] > 60
    assert red[corner].all() and red.mean() == pytest.approx(0.25, abs=0.02)
    with pytest.raises(OperatorError, match="no picture 'frame'"):
        pictures.draw("car-1", "a ../b", "frame")


def test_what_is_kept_is_bounded_however_large_the_fleet(tmp_path: Path) -> None:
    keep(tmp_path, [f"car-{number:03}" for number in range(1, 301)])
    kept = sorted((tmp_path / FOLDER_NAME).iterdir())
    assert len(kept) == MOST_VEHICLES and {kept[0].name, kept[-1].name} == {"car-001", "car-296"}
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 10_000 * MOST_VEHICLES
    assert Pictures(tmp_path).of("car-002") == {"frames": [], "classes": []}


@pytest.mark.parametrize("vehicle", ["../car-1", "..", "car-1/predictions", ""])
def test_names_lead_nowhere_else(vehicle: str, tmp_path: Path) -> None:
    keep(tmp_path, ["car-1"])
    with pytest.raises(Mistake):
        Pictures(tmp_path).of(vehicle)


def test_file_that_holds_something_else_is_named(tmp_path: Path) -> None:
    keep(tmp_path, ["car-1"])
    path = tmp_path / FOLDER_NAME / "car-1" / "predictions"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(Mistake, match=r"latest/car-1/predictions"):
        Pictures(tmp_path).of("car-1")
