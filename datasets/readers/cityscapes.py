"""Cityscapes on disk, read and written: leftImg8bit/<split>/<city>/ and gtFine/<split>/<city>/.

Layout and file names: https://github.com/mcordts/cityscapesScripts (README, "Dataset Structure").
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.entry import DatasetEntry, Splits
from datasets.frame import DatasetError, Frame, FrameRef
from datasets.ground_truth import TrueLabels
from datasets.labels import CITYSCAPES, UNKNOWN_ID, LabelSpace
from datasets.natural import natural_key
from datasets.readers.folder import (
    FrameFolder,
    dataset_missing,
    files_by_stem,
    pair_files,
    raise_faults,
)
from datasets.readers.image_files import Pixels, decode_ids, decode_instances

IMAGES = "leftImg8bit"
LABELS = "gtFine"
IMAGE_SUFFIX = "_leftImg8bit.png"
LABEL_SUFFIX = "_gtFine_labelIds.png"
INSTANCE_SUFFIX = "_gtFine_instanceIds.png"

# The official tools cut file names at underscores, so a city's name can't hold one.
_STEM = re.compile(r"(?P<city>[^_]+)_(?P<sequence>\d{6})_(?P<frame_id>\d{6})")
# Predictions may go on after the key in any way, as in the official tool; an underscore ends the city's name.
_KEY = re.compile(r"[^_]+_\d{6}_\d{6}")


class CityscapesFrames(FrameFolder):
    """The frames of a folder in the Cityscapes layout, with instance ids where there are such files."""

    def __init__(
        self,
        root: Path,
        label_space: LabelSpace = CITYSCAPES,
        splits: Sequence[str] = ("train", "val"),
    ) -> None:
        """Find the frames of `splits`; the official test split is left out, as its labels aren't public.

        Raises:
            DatasetMissing: `root` has no leftImg8bit/ or no gtFine/ folder.
            DatasetError: a split is missing, there are no frames, an image or a label lacks the other, or
                a file is misnamed.
        """
        if not ((root / IMAGES).is_dir() and (root / LABELS).is_dir()):
            raise dataset_missing("Cityscapes data", root, f"the folders {IMAGES}/ and {LABELS}/ in it")
        refs: dict[str, FrameRef] = {}
        faults: list[str] = []
        for split in splits:
            missing = [f for f in (root / IMAGES / split, root / LABELS / split) if not f.is_dir()]
            if missing:
                faults += [f"missing folder: {folder}" for folder in missing]
                continue
            for ref in _find_split(root, split, faults):
                if ref.key in refs:
                    faults.append(f"frame in two splits: {refs[ref.key].image_path} and {ref.image_path}")
                refs[ref.key] = ref
        if not refs and not faults:
            faults.append(f"no frames in the splits {', '.join(splits)}")
        raise_faults(f"Cityscapes data in {root}", faults)
        super().__init__(root, label_space, refs.values())


def find_splits(root: Path) -> tuple[str, ...]:
    """The splits that have a folder, of pictures or of labels."""
    kinds = (root / IMAGES, root / LABELS)
    return tuple(split for split in SPLITS.names if any((kind / split).is_dir() for kind in kinds))


def _find_split(root: Path, split: str, faults: list[str]) -> list[FrameRef]:
    image_folders, label_folders = (root / kind / split for kind in (IMAGES, LABELS))
    cities = {f.name for folder in (image_folders, label_folders) for f in folder.iterdir() if f.is_dir()}
    refs = []
    for city in sorted(cities, key=natural_key):
        images, labels, instances = (
            files_by_stem(folder / city, suffix) if (folder / city).is_dir() else {}
            for folder, suffix in (
                (image_folders, IMAGE_SUFFIX),
                (label_folders, LABEL_SUFFIX),
                (label_folders, INSTANCE_SUFFIX),
            )
        )
        for stem, (image_path, label_path) in pair_files(images, labels, faults).items():
            name = _STEM.fullmatch(stem)
            if name is None or name["city"] != city:
                faults.append(f"name is not {city}_<6 digits>_<6 digits>{IMAGE_SUFFIX}: {image_path}")
                continue
            refs.append(
                FrameRef(
                    key=stem,
                    city=city,
                    sequence=name["sequence"],
                    frame_id=name["frame_id"],
                    image_path=image_path,
                    label_path=label_path,
                    instance_path=instances.get(stem),
                )
            )
    return refs


def write_cityscapes_frame(
    root: Path, split: str, frame: Frame, label_space: LabelSpace = CITYSCAPES
) -> FrameRef:
    """Write a frame into the Cityscapes layout, each file whole or not at all, and return where it lies.

    Label ids come from the instance ids where the frame has them (they tell void classes apart), else from
    the trainIds. An existing frame of the same name is replaced.

    Raises:
        DatasetError: the frame's names don't fit the layout, or its instance ids contradict its trainIds.
        OSError: the folder is unwritable or full.
    """
    stem = f"{frame.city}_{frame.sequence}_{frame.frame_id}"
    if _STEM.fullmatch(stem) is None:
        raise DatasetError(f"frame name must be <city without _>_<6 digits>_<6 digits>, got {stem!r}")
    image_folder, label_folder = (root / kind / split / frame.city for kind in (IMAGES, LABELS))
    label_path = label_folder / f"{stem}{LABEL_SUFFIX}"
    ref = FrameRef(
        key=stem,
        city=frame.city,
        sequence=frame.sequence,
        frame_id=frame.frame_id,
        image_path=image_folder / f"{stem}{IMAGE_SUFFIX}",
        label_path=label_path,
        instance_path=None if frame.instance_HW is None else label_folder / f"{stem}{INSTANCE_SUFFIX}",
    )
    ids_HW = _label_ids(frame, label_space, stem)
    for folder in (image_folder, label_folder):
        folder.mkdir(parents=True, exist_ok=True)
    _write_png(ref.image_path, cv2.cvtColor(frame.image_HWC, cv2.COLOR_RGB2BGR))
    _write_png(label_path, ids_HW)
    if frame.instance_HW is not None and ref.instance_path is not None:
        _write_png(ref.instance_path, frame.instance_HW.astype(np.uint16))
    return ref


def _label_ids(frame: Frame, label_space: LabelSpace, stem: str) -> NDArray[np.uint8]:
    if frame.instance_HW is None:
        return label_space.to_ids(frame.label_HW)
    ids_HW = np.where(frame.instance_HW >= 1000, frame.instance_HW // 1000, frame.instance_HW)
    known = (ids_HW >= 0) & (ids_HW < 256)
    train_ids_HW = np.where(known, label_space.id_to_train_id[np.where(known, ids_HW, 0)], UNKNOWN_ID)
    wrong = int(np.count_nonzero(train_ids_HW != frame.label_HW))
    if wrong:
        raise DatasetError(f"frame {stem}: instance ids contradict the trainIds in {wrong} pixels")
    return ids_HW.astype(np.uint8)


def _write_png(path: Path, pixels: Pixels) -> None:
    encoded, data = cv2.imencode(".png", pixels)
    assert encoded, path
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data.tobytes())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
            if not _KEY.fullmatch(key):
                raise DatasetError(f"name is not <city>_<6 digits>_<6 digits>{LABEL_SUFFIX}: {path}")
            if key in self.label_paths:
                raise DatasetError(f"two ground truths of one frame: {self.label_paths[key]} and {path}")
            self.label_paths[key] = path
        if not self.label_paths:
            raise dataset_missing("ground truth", folder, f"files *{LABEL_SUFFIX} in it or below")
        self.keys = frozenset(self.label_paths)

    def key_of(self, stem: str) -> str | None:
        """See `GroundTruth.key_of`."""
        match = _KEY.match(stem)
        return match[0] if match else None

    def load(self, key: str) -> TrueLabels:
        """See `GroundTruth.load`."""
        path = self.label_paths[key]
        ids_HW = decode_ids(path, what="label ids").astype(np.uint8, copy=False)
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


SPLITS = Splits(names=("train", "val", "test"), find=find_splits, open=CityscapesFrames)

ENTRY = DatasetEntry(
    name="cityscapes",
    title="Cityscapes",
    label_space=CITYSCAPES,
    open=CityscapesFrames,
    ground_truth=CityscapesGroundTruth,
    splits=SPLITS,
    how_to_get="make driving frames with `blackfleet dataset generate {root}`, or unpack there "
    "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from https://www.cityscapes-dataset.com",
)
