"""Label images beside their frames: which are there already, and which may be replaced.

Shapes: H height, W width, C = 3 (RGB).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.frame import DatasetError
from datasets.label_files import label_beside, read_words, signed
from datasets.labels import VOID, LabelSpace
from datasets.readers.image_files import decode_ids
from edge_client.predict.sources import Shot
from protocol.atomic import write_bytes_atomic

TEACHER_DIGITS = 16
_JPEG_QUALITY = 95


@dataclass
class Counts:
    """What became of the frames, and of their pixels."""

    made: int = 0
    found: int = 0
    """Labelled before by the same model and settings."""
    others: int = 0
    """Labelled by another model or other settings, and left."""
    theirs: int = 0
    """With a label that names no model: it is worth more."""
    pixels_K: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    """Of made and found ones, by trainId."""
    void: dict[str, float] = field(default_factory=dict)
    """Share of void pixels by frame."""

    def add(self, name: str, label_HW: NDArray[np.uint8]) -> None:
        """Count the pixels of a frame."""
        counts_K = np.bincount(label_HW.ravel(), minlength=256)
        self.pixels_K += counts_K
        self.void[name] = round(float(counts_K[VOID] / label_HW.size), 6)

    @property
    def frames(self) -> int:
        """Labelled by this model with these settings."""
        return self.made + self.found


class LabelledFolder:
    """Writes labels, and frames where they do not lie there already."""

    def __init__(
        self, folder: Path | None, label_space: LabelSpace, words: dict[str, Any], *, replaces: bool
    ) -> None:
        """`folder`: for frames and labels; None: labels go beside the frames where these are. `words` say who
        makes the labels and how; with `replaces` labels of another model or other settings go."""
        self._folder = folder
        self._label_space = label_space
        self._words = words
        self._replaces = replaces

    def label_path(self, shot: Shot) -> Path:
        """Where the label of a frame goes."""
        return label_beside(self._frame_path(shot))

    def existing(self, shot: Shot, counts: Counts) -> bool:
        """Whether a frame has a label that stays; counted."""
        path = self.label_path(shot)
        if not path.exists():
            return False
        words = read_words(path)
        if words is None:
            counts.theirs += 1
            return True
        if words == self._words_of(shot):
            try:
                ids_HW = np.asarray(decode_ids(path), np.uint8)
                counts.add(shot.name, self._label_space.to_train_ids(ids_HW))
            except (DatasetError, ValueError):  # cut off, for instance: made again
                return False
            counts.found += 1
            return True
        if self._replaces:
            return False
        counts.others += 1
        return True

    def write(self, shot: Shot, label_HW: NDArray[np.uint8], counts: Counts) -> None:
        """Write a frame's label, trainIds, atomically, and the frame where it is not there.

        Raises:
            OSError: the disk is full, or the folder can't be written.
        """
        frame = self._frame_path(shot)
        frame.parent.mkdir(parents=True, exist_ok=True)
        if not frame.exists():
            write_bytes_atomic(frame, _frame_bytes(shot), sync=False)
        is_encoded, png = cv2.imencode(".png", self._label_space.to_ids(label_HW))
        assert is_encoded, label_HW.shape
        # After its frame: a label without one is nothing.
        write_bytes_atomic(label_beside(frame), signed(png.tobytes(), self._words_of(shot)), sync=False)
        counts.made += 1
        counts.add(shot.name, label_HW)

    def _frame_path(self, shot: Shot) -> Path:
        if self._folder is None:
            assert shot.path is not None, "only files have labels beside them"
            return shot.path
        return self._folder / (shot.name + (".jpg" if shot.path is None else shot.path.suffix))

    def _words_of(self, shot: Shot) -> dict[str, Any]:
        return {**self._words, "picture": hashlib.sha256(shot.image_HWC.tobytes()).hexdigest()[:16]}


def _frame_bytes(shot: Shot) -> bytes:
    """A file as it is; a video's frame as a vehicle keeps those of its camera."""
    if shot.path is not None:
        return shot.path.read_bytes()
    parameters = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    is_encoded, data = cv2.imencode(".jpg", np.ascontiguousarray(shot.image_HWC[:, :, ::-1]), parameters)
    assert is_encoded, shot.image_HWC.shape
    return data.tobytes()
