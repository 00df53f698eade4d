"""The data sets that can be opened by name, and the classes that they bring."""

from __future__ import annotations

from pathlib import Path

from datasets.entry import DatasetEntry
from datasets.frame import FrameSource
from datasets.generated.entry import GENERATED
from datasets.labels import LabelSpace
from datasets.readers import camvid, cityscapes, unlabelled
from datasets.readers.folder import DatasetMissing
from protocol.errors import SettingError

DATASETS: dict[str, DatasetEntry] = {
    entry.name: entry for entry in (cityscapes.ENTRY, camvid.ENTRY, GENERATED, unlabelled.ENTRY)
}

LABELLED: tuple[str, ...] = tuple(name for name, entry in DATASETS.items() if entry.label_space is not None)
"""Names of the data sets that a network can be trained and scored on."""

_LABEL_SPACES: dict[str, LabelSpace] = {
    entry.label_space.name: entry.label_space for entry in DATASETS.values() if entry.label_space is not None
}

LABEL_SPACES: tuple[str, ...] = tuple(_LABEL_SPACES)
"""Names of the label tables."""


def find_dataset(name: str) -> DatasetEntry:
    """The entry called `name`.

    Raises:
        SettingError: no data set has this name; the message lists the known ones.
    """
    try:
        return DATASETS[name]
    except KeyError:
        raise SettingError(f"unknown data set {name!r}, expected one of: {', '.join(DATASETS)}") from None


def open_dataset(name: str, root: Path, network_classes: LabelSpace | None = None) -> FrameSource:
    """Open the data set called `name` in the folder `root`.

    Args:
        name: see `find_dataset`.
        root: folder of the data set.
        network_classes: those of the network that looks at frames without labels; others have their own.

    Raises:
        SettingError: no data set has this name, or it has no classes of its own and none were given.
        DatasetMissing: it isn't there; the message says what was expected and how to get it.
        DatasetError: it is there, but incomplete or malformed.
    """
    entry = find_dataset(name)
    classes = entry.label_space or network_classes
    if classes is None:
        raise SettingError(f"data set {name} has no classes of its own; name those of the network")
    try:
        return entry.open(root, classes)
    except DatasetMissing as exc:
        hint = entry.how_to_get.format(root=root)
        raise DatasetMissing(f"{exc}; {hint}", expected=exc.expected) from exc


def label_space(name: str) -> LabelSpace:
    """Return the label table called `name`.

    Raises:
        SettingError: there is none; the message lists the known ones.
    """
    try:
        return _LABEL_SPACES[name]
    except KeyError:
        raise SettingError(
            f"unknown label space {name!r}, expected one of: {', '.join(LABEL_SPACES)}"
        ) from None
