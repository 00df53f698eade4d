"""Pictures without labels: what a camera has recorded, in a folder, a subfolder for each drive."""

from __future__ import annotations

import re
from pathlib import Path

from datasets.entry import DatasetEntry
from datasets.frame import FrameRef, frame_key
from datasets.labels import LabelSpace
from datasets.readers.folder import FrameFolder, dataset_missing, raise_faults

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


class Pictures(FrameFolder):
    """PNG and JPEG files of a folder and of its subfolders, which are its sequences; every label is void."""

    def __init__(self, root: Path, label_space: LabelSpace) -> None:
        """Find the pictures; by name they are in temporal order.

        Args:
            label_space: the classes of the network that is to tell what is in the pictures.

        Raises:
            DatasetMissing: there is no such folder, or no picture in it.
            DatasetError: two pictures of one name, or a name that is no word.
        """
        paths = sorted(
            path
            for path in (*root.glob("*"), *root.glob("*/*"))
            if path.suffix.lower() in _SUFFIXES and path.is_file() and not path.name.startswith(".")
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
                refs[key] = FrameRef(key, sequence, sequence, path.stem, path, None)
        raise_faults(f"pictures in {root}", faults)
        super().__init__(root, label_space, refs.values())


ENTRY = DatasetEntry(
    name="pictures",
    title="pictures without labels",
    label_space=None,
    open=Pictures,
    how_to_get="name the folder that the camera records to, or make driving frames with `blackfleet dataset "
    "generate DIR` and open them as cityscapes",
)
