"""The latest that a run has made of a few frames of a vehicle, for whoever looks on while it goes on.

`<run folder>/latest/<vehicle>/` holds two files, each replaced as a whole: `predictions`, of the vehicle's
validation frames (before the first validation of its test frames), and `loss_maps`, of train frames. There
is no frame in them, and nothing that whoever writes them did not have at hand. No run reads them.
Shapes: H height, W width, y x cells of a loss map.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from protocol.atomic import write_bytes_atomic
from protocol.errors import Mistake

FOLDER_NAME = "latest"
FRAMES_A_VEHICLE = 2
MOST_VEHICLES = 64
"""Of which something is kept, evenly spaced over the fleet."""
_MOST_WIDTH_PX = 384
_PREDICTIONS, _LOSS_MAPS = "predictions", "loss_maps"
_FAST = [cv2.IMWRITE_PNG_COMPRESSION, 1]


class LatestError(Mistake):
    """A file of these that holds something else; the message names it."""


class LatestFrame(msgspec.Struct, frozen=True, kw_only=True):
    """One frame; pictures are PNGs."""

    key: str
    truth: bytes
    """Label as the network is judged by, trainIds."""
    prediction: bytes = b""
    """TrainIds, of the same size."""
    loss_map: bytes = b""
    """255 where the loss was `Latest.most_loss`."""


class Latest(msgspec.Struct, frozen=True, kw_only=True):
    """What one of the files holds."""

    stage: int
    """In which it was made."""
    split: str
    """Of the frames."""
    label_space: str
    """What `datasets.catalog.label_space` knows the classes by."""
    frames: tuple[LatestFrame, ...]
    most_loss: float = 0.0


def evenly(count: int, most: int) -> tuple[int, ...]:
    """At most so many of `count` positions, as far apart as can be."""
    return tuple(range(count)) if count <= most else tuple(place * count // most for place in range(most))


class LatestFrames:
    """Keeps the latest of a fleet's vehicles in a run folder."""

    def __init__(self, run_folder: Path, vehicles: Sequence[str], label_space: str) -> None:
        """Nothing is written yet."""
        self._folder = run_folder / FOLDER_NAME
        self._label_space = label_space
        self._kept = frozenset(vehicles[place] for place in evenly(len(vehicles), MOST_VEHICLES))

    def folder(self, vehicle: str) -> Path | None:
        """Where the latest of a vehicle is kept; None: nowhere."""
        return self._folder / vehicle if vehicle in self._kept else None

    def keep_predictions(
        self,
        vehicle: str,
        stage: int,
        split: str,
        frames: Iterable[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]],
    ) -> None:
        """Keep (key, label_HW, prediction_HW) of a few frames, trainIds.

        Raises:
            OSError: the folder is unwritable or full.
        """
        folder = self.folder(vehicle)
        if folder is not None:
            write_predictions(folder, stage, split, self._label_space, frames)

    def keep_loss_maps(
        self, vehicle: str, stage: int, frames: Iterable[tuple[str, NDArray[np.uint8], NDArray[np.float32]]]
    ) -> None:
        """Keep (key, label_HW, map_yx) of a few train frames.

        Raises:
            OSError: the folder is unwritable or full.
        """
        folder = self.folder(vehicle)
        if folder is None:
            return
        chosen = list(frames)
        most = max((float(map_yx.max()) for _, _, map_yx in chosen), default=0.0)
        scale = 255 / most if most > 0 else 0.0
        shown = tuple(
            LatestFrame(
                key=key,
                truth=_png(label_HW),
                loss_map=_png((np.maximum(map_yx, 0) * scale).round().astype(np.uint8)),
            )
            for key, label_HW, map_yx in chosen
        )
        latest = Latest(
            stage=stage, split="train", label_space=self._label_space, frames=shown, most_loss=most
        )
        _write(folder / _LOSS_MAPS, latest)


def write_predictions(
    folder: Path,
    stage: int,
    split: str,
    label_space: str,
    frames: Iterable[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]],
) -> None:
    """Write (key, label_HW, prediction_HW) of a few frames, trainIds, as the latest of a vehicle.

    Raises:
        OSError: the folder is unwritable or full.
    """
    shown = tuple(
        LatestFrame(key=key, truth=_png(label_HW), prediction=_png(prediction_HW))
        for key, label_HW, prediction_HW in frames
    )
    _write(folder / _PREDICTIONS, Latest(stage=stage, split=split, label_space=label_space, frames=shown))


def read_latest(run_folder: Path, vehicle: str) -> list[Latest]:
    """What is kept of a vehicle: predictions, loss maps, one of them or none.

    Raises:
        LatestError: a file holds something else.
        OSError: it can't be read.
    """
    found = []
    for name in (_PREDICTIONS, _LOSS_MAPS):
        path = run_folder / FOLDER_NAME / vehicle / name
        try:
            found.append(msgspec.msgpack.decode(path.read_bytes(), type=Latest))
        except FileNotFoundError:
            continue
        except msgspec.DecodeError as error:
            raise LatestError(f"{path} does not hold what a run keeps there: {error}") from error
    return found


def decode_picture(png: bytes) -> NDArray[np.uint8]:
    """One of a frame's pictures, uint8 [H, W].

    Raises:
        LatestError: it is none.
    """
    image_HW = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE) if png else None
    if image_HW is None:
        raise LatestError("what a run has kept of a frame holds no such picture")
    return np.asarray(image_HW, np.uint8)


def _png(image_HW: NDArray[np.uint8]) -> bytes:
    height, width = image_HW.shape
    if width > _MOST_WIDTH_PX:
        size_WH = (_MOST_WIDTH_PX, max(1, round(height * _MOST_WIDTH_PX / width)))
        image_HW = np.asarray(cv2.resize(image_HW, size_WH, interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
    encoded, data = cv2.imencode(".png", image_HW, _FAST)
    assert encoded, f"PNG encoding refused {image_HW.dtype} {image_HW.shape}"
    return data.tobytes()


def _write(path: Path, latest: Latest) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(path, msgspec.msgpack.encode(latest), sync=False)
