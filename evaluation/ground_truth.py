"""The true labels that predictions are compared with: found by frame key, read as label ids.

Shapes: H height, W width.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from datasets.frame import DatasetError
from datasets.labels import CAMVID, CITYSCAPES, LabelSpace
from datasets.readers.camvid import CamVidFrames
from datasets.readers.cityscapes import INSTANCE_SUFFIX, LABEL_SUFFIX, LABELS
from datasets.readers.folder import DatasetMissing, decode_instances, decode_png
from evaluation.errors import EvaluationError

DATASETS = ("cityscapes", "camvid")

# Predictions may go on after the key in any way, as in the official tool; an underscore ends the city's name.
_CITYSCAPES_KEY = re.compile(r"[^_]+_\d{6}_\d{6}")


@dataclass(frozen=True, slots=True, eq=False)
class TrueLabels:
    """One frame's ground truth."""

    ids_HW: NDArray[np.uint8]
    """Label ids of the data set."""
    instance_HW: NDArray[np.int32] | None
    """Cityscapes instance ids, None where there is no such file."""


class GroundTruth(Protocol):
    """The labels of a data set."""

    label_space: LabelSpace
    keys: frozenset[str]

    def key_of(self, stem: str) -> str | None:
        """Return the frame key that the name of a prediction file (without extension) starts with, or None.

        A key need not be one of `keys`: the name may be right and the ground truth missing.
        """

    def load(self, key: str) -> TrueLabels:
        """Read one frame's labels.

        Raises:
            DatasetError: a file is unreadable, of the wrong kind, or holds unknown ids.
        """


class CityscapesGroundTruth:
    """All `*_gtFine_labelIds.png` below a folder: a data set's root, its gtFine/, one split or one city."""

    label_space = CITYSCAPES

    def __init__(self, folder: Path) -> None:
        """Find the label files.

        Raises:
            DatasetMissing: there are none.
            DatasetError: a frame occurs twice, or a name is not `<city>_<6 digits>_<6 digits>`.
        """
        root = folder / LABELS if (folder / LABELS).is_dir() else folder
        self.label_paths: dict[str, Path] = {}
        for path in sorted(root.rglob(f"*{LABEL_SUFFIX}")):
            key = path.name.removesuffix(LABEL_SUFFIX)
            if not _CITYSCAPES_KEY.fullmatch(key):
                raise DatasetError(f"name is not <city>_<6 digits>_<6 digits>{LABEL_SUFFIX}: {path}")
            if key in self.label_paths:
                raise DatasetError(f"two ground truths of one frame: {self.label_paths[key]} and {path}")
            self.label_paths[key] = path
        if not self.label_paths:
            raise DatasetMissing(
                f"no ground truth in {folder}: expected files *{LABEL_SUFFIX} in it or below"
            )
        self.keys = frozenset(self.label_paths)

    def key_of(self, stem: str) -> str | None:
        match = _CITYSCAPES_KEY.match(stem)
        return match[0] if match else None

    def load(self, key: str) -> TrueLabels:
        path = self.label_paths[key]
        pixels = decode_png(path)
        if pixels.ndim != 2 or pixels.dtype != np.uint8:
            raise DatasetError(f"{path} is not one 8-bit channel of label ids")
        ids_HW = pixels.astype(np.uint8, copy=False)
        try:
            self.label_space.to_train_ids(ids_HW)
        except ValueError as exc:
            raise DatasetError(f"{path}: {exc}") from exc
        instance_path = self.instance_path(key)
        instance_HW = decode_instances(instance_path) if instance_path else None
        if instance_HW is not None and instance_HW.shape != ids_HW.shape:
            raise DatasetError(f"{instance_path} has another size than {path}")
        return TrueLabels(ids_HW, instance_HW)

    def instance_path(self, key: str) -> Path | None:
        """Return the file of instance ids beside the labels, None if there is none."""
        path = self.label_paths[key].with_name(key + INSTANCE_SUFFIX)
        return path if path.is_file() else None


class CamVidGroundTruth:
    """The labels of a CamVid folder in either layout; the key is the picture's stem."""

    label_space = CAMVID

    def __init__(self, folder: Path) -> None:
        """Find the frames.

        Raises:
            DatasetMissing, DatasetError: as `CamVidFrames`.
        """
        self._frames = CamVidFrames(folder)
        self._refs = {ref.key: ref for ref in self._frames.refs}
        self.keys = frozenset(self._refs)

    def key_of(self, stem: str) -> str | None:
        parts = stem.split("_")
        prefixes = ("_".join(parts[:count]) for count in range(len(parts), 0, -1))
        return next((prefix for prefix in prefixes if prefix in self.keys), None)

    def load(self, key: str) -> TrueLabels:
        label_HW = self._frames.load_label(self._refs[key])
        return TrueLabels(self.label_space.to_ids(label_HW), None)


def open_ground_truth(folder: Path, dataset: str | None) -> GroundTruth:
    """Open the labels in `folder`; without a `dataset` (cityscapes or camvid), as the folder looks.

    Raises:
        EvaluationError: the folder is missing, the data set is unknown, or the folder looks like neither.
        DatasetError: the labels are missing, incomplete or malformed.
    """
    if not folder.is_dir():
        raise EvaluationError(f"no ground truth: {folder} is not a folder")
    if dataset is not None and dataset not in DATASETS:
        raise EvaluationError(f"data set must be {' or '.join(DATASETS)}, got {dataset!r}")
    if dataset == "camvid":
        return CamVidGroundTruth(folder)
    if dataset == "cityscapes":
        return CityscapesGroundTruth(folder)
    try:
        return CityscapesGroundTruth(folder)
    except DatasetMissing as cityscapes_missing:
        try:
            return CamVidGroundTruth(folder)
        except DatasetMissing:
            raise EvaluationError(
                f"{cityscapes_missing}, or CamVid's train/ and trainannot/ or its original layout"
            ) from None
