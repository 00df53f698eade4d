"""What predicting leaves: label images, overlays, an overlay video, and scores where there are labels.

Shapes: H height, W width.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.labels import LabelSpace
from edge_client.predict.sources import Shot
from evaluation.overlays import paint
from evaluation.predictions import PREDICTION_SUFFIX, write_png
from protocol.errors import Mistake

LABELS = "labels"
OVERLAYS = "overlays"


class OutputError(Mistake):
    """What can't be written here; the message says what to do."""


class Pictures:
    """`labels/NAME_pred_labelIds.png` with the ids of the data set's label files, `overlays/NAME.png`."""

    def __init__(self, folder: Path, label_space: LabelSpace, *, overlays: bool = True) -> None:
        self._folder = folder
        self._label_space = label_space
        self._overlays = overlays

    def add(self, shot: Shot, prediction_HW: NDArray[np.uint8]) -> None:
        """Write one picture's, atomically.

        Raises:
            OSError: the folder can't be written.
        """
        ids_HW = self._label_space.to_ids(prediction_HW)
        _write(self._folder / LABELS / f"{shot.name}{PREDICTION_SUFFIX}", ids_HW)
        if self._overlays:
            overlay_HWC = paint(shot.image_HWC, prediction_HW, self._label_space)
            _write(self._folder / OVERLAYS / f"{shot.name}.png", overlay_HWC)


class Video:
    """An overlay mp4, as a context: it gets its name when all frames are in it."""

    def __init__(self, path: Path, label_space: LabelSpace, rate_hz: float) -> None:
        self._path = path
        self._written = path.with_name(f".{path.stem}.{secrets.token_hex(6)}{path.suffix}")
        self._label_space = label_space
        self._rate_hz = rate_hz
        self._writer: cv2.VideoWriter | None = None
        self._size_WH = (0, 0)

    def __enter__(self) -> Video:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.release()
        if kind is None and self._written.exists():
            self._written.replace(self._path)
        self._written.unlink(missing_ok=True)

    def add(self, shot: Shot, prediction_HW: NDArray[np.uint8]) -> None:
        """Append a frame; all are of the first one's size.

        Raises:
            OutputError: OpenCV can't write such a video here.
        """
        overlay_HWC = paint(shot.image_HWC, prediction_HW, self._label_space)
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            height, width = prediction_HW.shape
            self._size_WH = (width, height)
            fourcc = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._written), fourcc, self._rate_hz, self._size_WH)
            if not self._writer.isOpened():
                raise OutputError(
                    f"OpenCV can't write the video {self._path}: the folder can't be written, or this build "
                    f"has no mp4v encoder; predict its frames as pictures then"
                )
        bgr_HWC = np.ascontiguousarray(overlay_HWC[:, :, ::-1])
        if bgr_HWC.shape[1::-1] != self._size_WH:
            bgr_HWC = np.asarray(cv2.resize(bgr_HWC, self._size_WH), np.uint8)
        self._writer.write(bgr_HWC)


def _write(path: Path, image: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, image)
