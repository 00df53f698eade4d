"""The data sets that can be opened by name, and the classes that they bring."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from datasets.entry import DatasetEntry, OpensFrames, OpensGroundTruth
from datasets.frame import DatasetError, FrameSource
from datasets.generated.entry import GENERATED
from datasets.labels import LabelSpace
from datasets.readers import camvid, cityscapes, unlabelled
from datasets.readers.folder import DatasetMissing
from protocol.doors import FOREIGN_CHOICE, Door, is_foreign, misfit
from protocol.errors import SettingError

DATASETS: dict[str, DatasetEntry] = {
    entry.name: entry for entry in (cityscapes.ENTRY, camvid.ENTRY, GENERATED, unlabelled.ENTRY)
}

LABELLED: tuple[str, ...] = tuple(name for name, entry in DATASETS.items() if entry.label_space is not None)
"""Names of our data sets that a network can be trained and scored on."""

LABELLED_CHOICES = ", ".join((*LABELLED, FOREIGN_CHOICE))
"""What the name of such a data set may be, for help and errors."""

_LABEL_SPACES: dict[str, LabelSpace] = {
    entry.label_space.name: entry.label_space for entry in DATASETS.values() if entry.label_space is not None
}

LABEL_SPACES: tuple[str, ...] = tuple(_LABEL_SPACES)
"""Names of the label tables."""


DATASET_DOOR = Door("data set", DatasetEntry, DATASETS)


def find_dataset(name: str) -> DatasetEntry:
    """The entry called `name`: one of ours, or `package.module:name` of somebody else's.

    Theirs is called by the name that it is found under, and so are its classes, unless they are ours.

    Raises:
        SettingError: nothing that fits is behind the name; the message lists the known ones.
    """
    entry = DATASET_DOOR.find(name)
    return _named(entry, name) if is_foreign(name) else entry


@lru_cache
def _named(entry: DatasetEntry, name: str) -> DatasetEntry:
    for function, kind in ((entry.open, OpensFrames), (entry.ground_truth, OpensGroundTruth)):
        reason = function and misfit(function, kind)
        if reason:
            raise DATASET_DOOR.refuse(name, f"{'open' if kind is OpensFrames else 'ground_truth'} {reason}")
    classes = entry.label_space
    if classes is not None and classes != _LABEL_SPACES.get(classes.name):
        classes = replace(classes, name=name)
    return replace(entry, name=name, label_space=classes)


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
        with DATASET_DOOR.guard(name, keeping=(DatasetError, OSError)):
            source = entry.open(root, classes)
    except DatasetMissing as exc:
        hint = entry.how_to_get.format(root=root)
        raise DatasetMissing(f"{exc}; {hint}", expected=exc.expected) from exc
    reason = misfit(source, FrameSource)
    if reason is None and source.label_space != classes:
        reason = "has other classes than it was given"
    if reason is not None:
        raise DATASET_DOOR.refuse(name, f"what it opens {reason}")
    return source


def label_space(name: str) -> LabelSpace:
    """Return the label table called `name`; one of somebody else's is called as their data set is.

    Raises:
        SettingError: there is none; the message lists the known ones.
    """
    if is_foreign(name):
        classes = find_dataset(name).label_space
        if classes is None:
            raise DATASET_DOOR.refuse(name, "has no classes of its own")
        return classes
    try:
        return _LABEL_SPACES[name]
    except KeyError:
        raise SettingError(
            f"unknown label space {name!r}, expected one of: {', '.join(LABEL_SPACES)}, or the "
            f"package.module:name of your own data set"
        ) from None
