"""Prediction files and overlay pictures."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.labels import CAMVID, CITYSCAPES, VOID, LabelSpace
from evaluation.overlays import draw_overlay, write_overlay
from evaluation.predictions import (
    PredictionError,
    prediction_name,
    read_prediction,
    read_prediction_ids,
    write_prediction,
)


@pytest.mark.parametrize("label_space", [CITYSCAPES, CAMVID], ids=lambda space: space.name)
def test_prediction_survives_the_file(label_space: LabelSpace, tmp_path: Path) -> None:
    values = np.r_[0 : label_space.num_classes, VOID].astype(np.uint8)
    prediction_HW = np.random.default_rng(0).choice(values, size=(40, 56))
    path = write_prediction(tmp_path / "new" / "folder", "aachen_000000_000019", prediction_HW, label_space)
    assert path.name == "aachen_000000_000019_pred_labelIds.png"
    assert np.array_equal(read_prediction(path, label_space), prediction_HW)
    assert np.array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), label_space.to_ids(prediction_HW))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_cityscapes_prediction_file_holds_regular_ids(tmp_path: Path) -> None:
    path = write_prediction(tmp_path, "a_000000_000001", np.array([[0, 13, VOID]], np.uint8), CITYSCAPES)
    assert read_prediction_ids(path, CITYSCAPES).tolist() == [[7, 26, 0]]


def test_prediction_is_written_at_the_size_of_its_ground_truth(tmp_path: Path) -> None:
    prediction_HW = np.array([[0, 1], [2, 3]], np.uint8)
    path = write_prediction(tmp_path, "x_1", prediction_HW, CAMVID, size_WH=(6, 4))
    assert np.array_equal(read_prediction(path, CAMVID), np.kron(prediction_HW, np.ones((2, 3), np.uint8)))


def test_ignored_ids_in_a_prediction_read_as_void(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    cv2.imwrite(str(path), np.array([[29, 26, 9]], np.uint8))
    assert read_prediction(path, CITYSCAPES).tolist() == [[VOID, 13, VOID]]


@pytest.mark.parametrize("key", ["", "../x", "a/b", "a b", "a\n"])
def test_key_that_is_no_file_name_is_refused(key: str) -> None:
    with pytest.raises(PredictionError, match="frame key"):
        prediction_name(key)


@pytest.mark.parametrize(
    "prediction",
    [np.zeros((2, 2), np.int64), np.zeros((2, 2, 3), np.uint8), np.full((2, 2), 11, np.uint8)],
    ids=["type", "channels", "value"],
)
def test_prediction_that_is_no_train_id_map_is_not_written(prediction: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prediction of x_1"):
        write_prediction(tmp_path, "x_1", prediction, CAMVID)
    assert not list(tmp_path.iterdir())


def test_failed_write_keeps_the_old_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_prediction(tmp_path, "x_1", np.zeros((4, 4), np.uint8), CAMVID)
    before = path.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_prediction(tmp_path, "x_1", np.ones((4, 4), np.uint8), CAMVID)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((4, 4, 3), 7, np.uint8), "expected a grey PNG .* got an RGB PNG"),
        (np.full((4, 4), 34, np.uint8), "holds 34"),
        (np.full((4, 4), 255, np.uint8), "holds 255"),
        (np.full((4, 4), 26001, np.uint16), "holds 26001"),
    ],
)
def test_image_without_label_ids_is_refused(image: np.ndarray, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    cv2.imwrite(str(path), image)
    with pytest.raises(PredictionError, match=message) as error:
        read_prediction_ids(path, CITYSCAPES)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0, 30, 0.5], ids=["empty", "header", "half"])
def test_truncated_prediction_is_refused(keep: float, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 11, (64, 64), dtype=np.uint8)
    path = write_prediction(tmp_path, "x_1", noise, CAMVID)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if keep < 1 else int(keep)])
    with pytest.raises(PredictionError, match="x_1"):
        read_prediction(path, CAMVID)


def test_missing_prediction_is_named(tmp_path: Path) -> None:
    with pytest.raises(PredictionError, match="nowhere"):
        read_prediction(tmp_path / "nowhere.png", CAMVID)


def test_overlay_shows_class_colours_and_black_void(tmp_path: Path) -> None:
    height, width = 192, 256
    image_HWC = np.full((height, width, 3), 128, np.uint8)
    label_HW = np.zeros((height, width), np.uint8)
    label_HW[100:] = VOID
    prediction_HW = np.full((height, width), 13, np.uint8)
    write_overlay(tmp_path / "pictures" / "x.png", image_HWC, label_HW, prediction_HW, CITYSCAPES)
    bgr = cv2.imread(str(tmp_path / "pictures" / "x.png"))
    picture = bgr[:, :, ::-1].astype(int)
    panel = 2 * width
    assert picture.shape[1] == 3 * panel + 4 * 8
    assert picture.shape[0] > 2 * height
    middle = 26 + height  # below the titles
    assert picture[middle - 100, 100].tolist() == [128, 128, 128]
    red, green, blue = picture[middle - 100, panel + 100]
    assert red > green and blue > green  # road is purple
    assert picture[middle + 100, panel + 100].tolist() == [0, 0, 0]
    red, green, blue = picture[middle, 2 * panel + 100]
    assert blue > red == green  # car is blue


def test_overlay_without_ground_truth_has_two_panels() -> None:
    image_HWC = np.zeros((30, 40, 3), np.uint8)
    label_HW = np.zeros((30, 40), np.uint8)
    three = draw_overlay(image_HWC, label_HW, label_HW, CAMVID)
    two = draw_overlay(image_HWC, None, label_HW, CAMVID)
    assert two.shape[1] - 8 == pytest.approx((three.shape[1] - 8) * 2 / 3)


def test_overlay_legend_with_every_class_fits_the_width() -> None:
    prediction_HW = np.resize(np.r_[0:19, VOID].astype(np.uint8), (48, 64))
    picture = draw_overlay(np.zeros((48, 64, 3), np.uint8), None, prediction_HW, CITYSCAPES)
    assert picture.shape[0] > 48 * 7 + 26 + 2 * 24  # more than one row of legend


def test_overlay_of_unequal_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match="one height and width"):
        draw_overlay(np.zeros((4, 4, 3), np.uint8), None, np.zeros((4, 5), np.uint8), CAMVID)
