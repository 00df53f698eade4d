"""Overlays of a run in TensorBoard, read by its own reader."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fleet.show.board_pictures import MOST_PICTURES, put_on_board


def _board(run_folder: Path) -> EventAccumulator:
    board = EventAccumulator(str(run_folder / "tensorboard"), size_guidance={"images": 0})
    board.Reload()
    return board


def _overlays(run_folder: Path, vehicles: int, each: int) -> list[Path]:
    paths = []
    for number in range(vehicles * each):
        path = run_folder / "overlays" / f"car-{number // each:02d}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((4, 6, 3), (number, 0, 255), np.uint8))
        paths.append(path)
    return paths


def test_pictures_are_on_the_board_in_their_colours(tmp_path: Path) -> None:
    put_on_board(tmp_path, _overlays(tmp_path, 2, 2), step=4)
    board = _board(tmp_path)
    assert board.Tags()["images"] == ["overlays/car-00", "overlays/car-01"]
    images = board.Images("overlays/car-01")
    assert [image.step for image in images] == [4, 5]
    assert [(image.width, image.height) for image in images] == [(6, 4)] * 2
    encoded = np.frombuffer(images[1].encoded_image_string, np.uint8)
    pixel = cv2.imdecode(encoded, cv2.IMREAD_COLOR)[0, 0].tolist()
    assert pixel == [3, 0, 255]  # blue, green, red


def test_a_large_fleet_has_some(tmp_path: Path) -> None:
    put_on_board(tmp_path, _overlays(tmp_path, 50, 2), step=0)
    board = _board(tmp_path)
    assert sum(len(board.Images(tag)) for tag in board.Tags()["images"]) == MOST_PICTURES


def test_without_overlays_there_is_no_new_file(tmp_path: Path) -> None:
    put_on_board(tmp_path, [], step=0)
    assert not (tmp_path / "tensorboard").exists()
