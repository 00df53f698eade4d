"""Where pictures to predict come from: a file, a folder, a video, or a data set with its labels.

Shapes: H height, W width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.catalog import open_dataset
from datasets.frame import FrameRef
from datasets.label_files import LABEL_SUFFIX
from datasets.labels import LabelSpace
from datasets.natural import natural_key
from datasets.readers.image_files import decode_rgb
from protocol.errors import Mistake

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})


class SourceError(Mistake):
    """A source that is missing, empty or can't be decoded; the message names it."""


@dataclass(frozen=True)
class Shot:
    """One picture, and its label where there is one."""

    name: str
    """What its files are called: with a folder in it where the picture lies in one."""
    image_HWC: NDArray[np.uint8]
    """RGB."""
    label_HW: NDArray[np.uint8] | None = None
    """trainIds, at the picture's size."""
    path: Path | None = None
    """Of the picture's file, where it is one."""


class Source(Protocol):
    """Pictures in their order."""

    count: int
    """How many there are, as far as one can know before they are read."""
    rate_hz: float | None
    """Pictures a second of a video; None: these are single pictures."""

    def __iter__(self) -> Iterator[Shot]:
        """Read them.

        Raises:
            SourceError, DatasetError: one can't be read.
        """


def open_source(
    path: Path,
    label_space: LabelSpace,
    *,
    dataset: str | None = None,
    run: Path | None = None,
    vehicle: str = "",
) -> Source:
    """Open what is to be predicted.

    Args:
        path: a PNG or JPEG file, a folder of them, a video, or with `dataset` the folder of a data set.
        label_space: classes of the model that is to look at it.
        dataset: a row of `datasets.catalog.DATASETS`, or `package.module:name`.
        run: folder of the run that the model is of: only test frames of `vehicle`, whose it is.

    Raises:
        SourceError: there is nothing at `path`, or nothing that can be read.
        SettingError, DatasetError: the data set is unknown, missing or malformed.
    """
    if not path.exists():
        raise SourceError(f"there is nothing at {path}: give a picture, a folder of pictures, or a video")
    if dataset is not None:
        return _DataSet(path, label_space, dataset, run, vehicle)
    if run is not None:
        raise SourceError("test frames of a run are those of its data set; name that, too (--dataset)")
    if path.is_dir():
        return _Pictures(path, _pictures_in(path))
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _Pictures(path.parent, [path])
    return _Video(path)


class _Pictures:
    rate_hz: float | None = None

    def __init__(self, root: Path, paths: list[Path]) -> None:
        self.count = len(paths)
        self._root = root
        self._paths = paths

    def __iter__(self) -> Iterator[Shot]:
        for path in self._paths:
            yield Shot(str(path.relative_to(self._root).with_suffix("")), decode_rgb(path), path=path)


def _pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder and of its subfolders, in natural order of their names."""
    paths = sorted(
        (
            path
            for path in (*folder.glob("*"), *folder.glob("*/*"))
            if path.suffix.lower() in IMAGE_SUFFIXES
            and path.is_file()
            and not path.name.startswith(".")
            and not path.name.endswith(LABEL_SUFFIX)
        ),
        key=lambda path: natural_key(str(path.relative_to(folder))),
    )
    if not paths:
        raise SourceError(
            f"no pictures in {folder}: expected .png or .jpg files in it or in its subfolders; a data set "
            f"needs its name (--dataset)"
        )
    named: dict[Path, Path] = {}
    for path in paths:
        other = named.setdefault(path.with_suffix(""), path)
        if other != path:
            raise SourceError(f"two pictures of one name: {other} and {path}; rename one")
    return paths


class _Video:
    def __init__(self, path: Path) -> None:
        self._path = path
        capture = self._open()
        self.count = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        rate_hz = float(capture.get(cv2.CAP_PROP_FPS))
        self.rate_hz: float | None = rate_hz if 0 < rate_hz < 1000 else 25.0
        capture.release()

    def __iter__(self) -> Iterator[Shot]:
        capture = self._open()
        number = 0
        try:
            while True:
                is_there, image_HWC = capture.read()
                if not is_there:
                    break
                rgb_HWC = np.asarray(cv2.cvtColor(image_HWC, cv2.COLOR_BGR2RGB), np.uint8)
                yield Shot(f"{self._path.stem}_{number:06d}", rgb_HWC)
                number += 1
        finally:
            capture.release()
        if number == 0:
            raise SourceError(f"no frame of the video {self._path} can be decoded")

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(self._path))
        if not capture.isOpened():
            raise SourceError(
                f"{self._path} is no video that OpenCV can decode, and no .png or .jpg picture; convert it, "
                f"to H.264 in an .mp4 for instance"
            )
        return capture


class _DataSet:
    rate_hz: float | None = None

    def __init__(
        self, root: Path, label_space: LabelSpace, name: str, run: Path | None, vehicle: str
    ) -> None:
        self._source = open_dataset(name, root, network_classes=label_space)
        if self._source.label_space != label_space:
            raise SourceError(
                f"the model knows {_classes(label_space)}, data set {name} has "
                f"{_classes(self._source.label_space)}; give a data set with the model's classes, or its "
                f"pictures without --dataset"
            )
        self._refs: tuple[FrameRef, ...] = self._source.refs
        if run is not None:
            wanted = test_keys(run, vehicle)
            refs = {ref.key: ref for ref in self._refs}
            gone = [key for key in wanted if key not in refs]
            if gone:
                raise SourceError(f"frame {gone[0]}, on which {run} was tested, is not in {root}")
            self._refs = tuple(refs[key] for key in wanted)
        self.count = len(self._refs)

    def __iter__(self) -> Iterator[Shot]:
        for ref in self._refs:
            if ref.label_path is None:
                yield Shot(ref.key, self._source.load_image(ref), path=ref.image_path)
            else:
                frame = self._source.load(ref)
                yield Shot(ref.key, frame.image_HWC, frame.label_HW, ref.image_path)


def test_keys(run: Path, vehicle: str) -> list[str]:
    """Keys of the test frames of a vehicle in a run.

    Raises:
        SourceError: the folder doesn't tell.
    """
    path = run / "partition.json"
    try:
        content: Any = json.loads(path.read_bytes())
        return [str(key) for key in content["vehicles"][vehicle]["test"]]
    except OSError as error:
        raise SourceError(f"can't read {path}, which names a run's test frames: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{path} names no test frames of vehicle {vehicle}, whose model this is") from error


def _classes(space: LabelSpace) -> str:
    return f"the {space.num_classes} classes of {space.name}"
