"""Predicted label images on disk, named so that the official tools find them, and pictures for people.

Shapes: H height, W width, C = 3 (RGB).
"""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.frame import DatasetError
from datasets.labels import UNKNOWN_ID, VOID, LabelSpace
from datasets.readers.image_files import decode_ids
from protocol.atomic import write_bytes_atomic
from protocol.errors import Mistake

PREDICTION_SUFFIX = "_pred_labelIds.png"

_KEY = re.compile(r"[A-Za-z0-9_.-]+")


class PredictionError(Mistake):
    """A predicted label image that is unreadable or doesn't hold label ids; the message names the file."""


def prediction_name(key: str) -> str:
    """Return the file name for a frame key: Cityscapes `<city>_<seq6>_<frame6>`, CamVid the picture's stem.

    Raises:
        PredictionError: the key holds characters that don't belong into a file name.
    """
    if not _KEY.fullmatch(key):
        raise PredictionError(f"frame key must be letters, digits, '_', '.' or '-', got {key!r}")
    return key + PREDICTION_SUFFIX


def write_prediction(
    folder: Path,
    key: str,
    prediction_HW: NDArray[np.uint8],
    label_space: LabelSpace,
    *,
    size_WH: tuple[int, int] | None = None,
) -> Path:
    """Write uint8 trainIds as a PNG of label ids into `folder` (made if missing), atomically.

    `size_WH` enlarges or shrinks the prediction, by nearest pixel, to the size of its ground truth:
    evaluation, ours and the official one, compares pixel by pixel and takes no other size. Returns the
    file.

    Raises:
        PredictionError: the key is no file name.
        ValueError: the prediction is not a uint8 map of trainIds or void.
        OSError: the folder can't be written.
    """
    name = prediction_name(key)
    if prediction_HW.ndim != 2 or prediction_HW.dtype != np.uint8 or not prediction_HW.size:
        raise ValueError(
            f"prediction of {key} must be uint8 [H, W], got {prediction_HW.dtype} {prediction_HW.shape}"
        )
    unknown = prediction_HW[(prediction_HW >= label_space.num_classes) & (prediction_HW != VOID)]
    if unknown.size:
        raise ValueError(
            f"prediction of {key} holds {unknown[0]}, expected {label_space.name} trainIds"
            f" 0 to {label_space.num_classes - 1} or {VOID} for void"
        )
    if size_WH is not None and size_WH != prediction_HW.shape[::-1]:
        prediction_HW = np.asarray(cv2.resize(prediction_HW, size_WH, interpolation=cv2.INTER_NEAREST_EXACT))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    write_png(path, label_space.to_ids(prediction_HW))
    return path


def read_prediction_ids(path: Path, label_space: LabelSpace) -> NDArray[np.uint8]:
    """Read a predicted label image as uint8 label ids [H, W].

    Raises:
        PredictionError: the file is missing or no image, has colours, or holds ids that are not in the table.
    """
    try:
        ids_HW = decode_ids(path, bits=(8, 16), what=f"{label_space.name} label ids")
    except DatasetError as exc:
        raise PredictionError(str(exc)) from exc
    known = label_space.id_to_train_id != UNKNOWN_ID
    unknown = [int(i) for i in np.unique(ids_HW) if i > 255 or not known[i]]
    if unknown:
        shown = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
        raise PredictionError(f"{path} holds {shown}: not {label_space.name} label ids")
    return ids_HW.astype(np.uint8, copy=False)


def read_prediction(path: Path, label_space: LabelSpace) -> NDArray[np.uint8]:
    """Read a predicted label image as uint8 trainIds [H, W]; ids outside the evaluated classes become void.

    Raises:
        PredictionError: as `read_prediction_ids`.
    """
    return label_space.to_train_ids(read_prediction_ids(path, label_space))


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write uint8 [H, W], or RGB [H, W, 3], as a PNG, atomically.

    Raises:
        OSError: the folder is missing, unwritable or full.
    """
    bgr = image[:, :, ::-1] if image.ndim == 3 else image
    encoded, data = cv2.imencode(".png", np.ascontiguousarray(bgr))
    assert encoded, f"PNG encoding refused {image.dtype} {image.shape}"
    write_bytes_atomic(path, data.tobytes(), sync=False)
