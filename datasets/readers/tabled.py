"""Frames of one's own in a plain layout, with a table of their classes: no code is needed for them.

    DIR/dataset.yaml                              the table, see `datasets.readers.class_table`
    DIR/images/[[city/]sequence/]name.png|jpg
    DIR/labels/[[city/]sequence/]name.png         the label of the image at the same place

Or divided: DIR/train/images, DIR/train/labels, and likewise val and test. A folder of images that is not
divided into cities is a city itself; images in no folder are of the city `all`. A frame is called as its
place, `<city>_<sequence>_<name>`; a name that begins with its folders' names doesn't repeat them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datasets.entry import DatasetEntry, Splits
from datasets.frame import DatasetError, FrameRef, frame_key
from datasets.labels import UNKNOWN_ID, LabelSpace
from datasets.readers.folder import FrameFolder, dataset_missing, pair_files, raise_faults
from datasets.readers.image_files import decode_ids, decode_rgb

if TYPE_CHECKING:
    from datasets.readers.class_table import ClassTable

TABLE_NAME = "dataset.yaml"
SPLITS = ("train", "val", "test")
_IMAGES, _LABELS = "images", "labels"
_IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
_LABEL_SUFFIXES = frozenset({".png"})
_NO_CITY = "all"
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


class TabledFrames(FrameFolder):
    """The frames of a folder in this layout, of all parts that it is divided into."""

    def __init__(self, root: Path, label_space: LabelSpace, splits: Sequence[str] | None = None) -> None:
        """Find the frames, those of `splits` alone where they are named; by name they are in temporal order.

        Raises:
            DatasetMissing: `root` has no table.
            DatasetError: the table is malformed; an image or a label lacks the other, is misnamed, or is
                there twice; or there are none.
        """
        table = _read_table(root)
        self._colours = table.colours
        self.colours = sorted(table.colours.meanings.items()) if table.colours else None
        """Where labels are colours: which stands for which trainId."""
        faults: list[str] = []
        refs: dict[str, FrameRef] = {}
        for part in _parts(root, faults) if splits is None else [root / split for split in splits]:
            images = _files(part / _IMAGES, _IMAGE_SUFFIXES, faults)
            labels = _files(part / _LABELS, _LABEL_SUFFIXES, faults)
            for place, (image_path, label_path) in pair_files(images, labels, faults).items():
                ref = _ref(place, image_path, label_path)
                if not _NAME.fullmatch(ref.key):
                    faults.append(f"name is not made of letters, digits, '_', '.' and '-': {image_path}")
                elif ref.key in refs:
                    faults.append(f"two frames of one name: {refs[ref.key].image_path} and {image_path}")
                else:
                    refs[ref.key] = ref
        if not refs and not faults:
            faults.append("no frames" + (f" in the splits {', '.join(splits)}" if splits else ""))
        raise_faults(f"frames in {root}", faults)
        super().__init__(root, label_space, refs.values())

    def decode_label(self, path: Path) -> NDArray[np.uint8]:
        """Read a label file, of ids or colours as the table says, as trainIds, uint8 [H, W].

        Raises:
            DatasetError: the file is missing, unreadable, or holds an id or colour that is not in the table.
        """
        if self._colours is not None:
            return self._colours.to_train_ids(decode_rgb(path, labelled=True), path)
        ids_HW = decode_ids(path)
        label_HW: NDArray[np.uint8] = self.label_space.id_to_train_id[ids_HW]
        unknown = np.unique(ids_HW[label_HW == UNKNOWN_ID])
        if unknown.size:
            ids = f"id{'s' if unknown.size > 1 else ''} {', '.join(map(str, unknown))}"
            raise DatasetError(
                f"{path}: holds the {ids}, which "
                f"{_table_path(self.root)} has neither among its classes nor among the ignored; add it"
            )
        return label_HW


def read_classes(root: Path) -> LabelSpace:
    """The classes of the table in `root`.

    Raises:
        DatasetMissing: there is none.
        DatasetError: it is malformed.
    """
    return _read_table(root).label_space


def _table_path(root: Path) -> Path:
    path = root / TABLE_NAME
    if not path.is_file():
        raise dataset_missing(
            "frames with a table of classes", root, f"{TABLE_NAME}, {_IMAGES}/ and {_LABELS}/ in it"
        )
    return path


def _parts(root: Path, faults: list[str]) -> list[Path]:
    """The folders in which images and labels lie."""
    candidates = [root, *(root / split for split in SPLITS)]
    parts = [part for part in candidates if any((part / name).is_dir() for name in (_IMAGES, _LABELS))]
    if not parts:
        faults.append(f"neither {_IMAGES}/ and {_LABELS}/ nor {', '.join(SPLITS)} with these in it")
    return parts


def label_files(root: Path) -> list[Path]:
    """All label images of a folder, of whatever parts, by name.

    Raises:
        DatasetMissing: there are none.
    """
    parts = [part / _LABELS for part in (root, *(root / split for split in SPLITS))]
    found = [path for part in parts if part.is_dir() for path in _files(part, _LABEL_SUFFIXES, []).values()]
    if not found:
        raise dataset_missing(
            "labels", root, f"{_LABELS}/CITY/1.png in it, of the image {_IMAGES}/CITY/1.png or .jpg"
        )
    return found


def find_splits(root: Path) -> tuple[str, ...]:
    """The splits that the folder is divided into; none where its frames lie together."""
    return tuple(s for s in SPLITS if any((root / s / name).is_dir() for name in (_IMAGES, _LABELS)))


def _files(folder: Path, suffixes: frozenset[str], faults: list[str]) -> dict[str, Path]:
    """The files of these kinds by their place in the folder, without suffix."""
    if not folder.is_dir():
        faults.append(f"missing folder: {folder}")
        return {}
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in suffixes or path.name.startswith(".") or not path.is_file():
            continue
        place = str(path.relative_to(folder).with_suffix(""))
        if place.count("/") > 2:
            faults.append(f"deeper than <city>/<sequence>/: {path}")
        elif place in files:
            faults.append(f"two files of one name: {files[place]} and {path}")
        else:
            files[place] = path
    return files


def _ref(place: str, image_path: Path, label_path: Path) -> FrameRef:
    *folders, frame_id = place.split("/")
    city = folders[0] if folders else _NO_CITY
    sequence = folders[-1] if folders else _NO_CITY
    frame_id = frame_id.removeprefix(
        frame_key(city, sequence, "")
    )  # files are often named after their folder
    return FrameRef(frame_key(city, sequence, frame_id), city, sequence, frame_id, image_path, label_path)


def _read_table(root: Path) -> ClassTable:
    # here, because only this needs msgspec: other data sets are read where there is none
    from datasets.readers.class_table import read_class_table

    return read_class_table(_table_path(root))


ENTRY = DatasetEntry(
    name="folder",
    title="frames of your own",
    label_space=None,
    read_classes=read_classes,
    open=TabledFrames,
    splits=Splits(names=SPLITS, find=find_splits, open=TabledFrames),
    how_to_get="lay them out as images/CITY/1.png (or .jpg) and labels/CITY/1.png and let `blackfleet "
    "dataset describe DIR` draw up the table, or make driving frames with `blackfleet dataset generate DIR` "
    "and open them as cityscapes",
)
