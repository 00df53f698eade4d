"""What a camera has recorded, in a folder, a subfolder for each drive; with labels beside some, or none."""

from __future__ import annotations

import re
from pathlib import Path

from datasets.entry import DatasetEntry
from datasets.frame import FrameRef, frame_key
from datasets.label_files import LABEL_SUFFIX, label_beside
from datasets.labels import LabelSpace
from datasets.readers.folder import FrameFolder, dataset_missing, raise_faults

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
_FEWEST = 3
"""Labelled frames from which on those without are left out: one for each split of a vehicle."""
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


class Pictures(FrameFolder):
    """PNG and JPEG files of a folder and of its subfolders, which are its sequences.

    A label lies beside its picture (`datasets.label_files`). Where three frames or more have one, these are
    the data set: those without would teach nothing beside them. A frame without has a void label.
    """

    def __init__(self, root: Path, label_space: LabelSpace) -> None:
        """Find the pictures; by name they are in temporal order.

        Args:
            label_space: the classes of the network that is to tell what is in the pictures, and of labels.

        Raises:
            DatasetMissing: there is no such folder, or no picture in it.
            DatasetError: two pictures of one name, or a name that is no word.
        """
        paths = sorted(
            path
            for path in (*root.glob("*"), *root.glob("*/*"))
            if path.suffix.lower() in _SUFFIXES
            and path.is_file()
            and not path.name.startswith(".")
            and not path.name.endswith(LABEL_SUFFIX)
        )
        if not paths:
            raise dataset_missing(
                "pictures", root, ".png or .jpg files in it, or in subfolders, one for each drive"
            )
        refs: dict[str, FrameRef] = {}
        faults: list[str] = []
        for path in paths:
            sequence = root.resolve().name if path.parent == root else path.parent.name
            key = frame_key(sequence, sequence, path.stem)
            if not _NAME.fullmatch(key):
                faults.append(f"name is not made of letters, digits, '_', '.' and '-': {path}")
            elif key in refs:
                faults.append(f"two pictures of one name: {refs[key].image_path} and {path}")
            else:
                label = label_beside(path)
                refs[key] = FrameRef(
                    key, sequence, sequence, path.stem, path, label if label.is_file() else None
                )
        raise_faults(f"pictures in {root}", faults)
        labelled = [ref for ref in refs.values() if ref.label_path is not None]
        super().__init__(root, label_space, labelled if len(labelled) >= _FEWEST else refs.values())


ENTRY = DatasetEntry(
    name="pictures",
    title="pictures without labels",
    label_space=None,
    open=Pictures,
    how_to_get="name the folder that the camera records to, or make driving frames with `blackfleet dataset "
    "generate DIR` and open them as cityscapes",
)
