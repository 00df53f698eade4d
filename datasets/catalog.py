"""The data sets that can be opened by name, and the classes that they bring."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from datasets.class_file import CLASS_FILE_ENDS, is_class_file, read_class_file
from datasets.entry import (
    DatasetEntry,
    FindsSplits,
    OpensFrames,
    OpensGroundTruth,
    OpensSplits,
    ReadsClasses,
)
from datasets.frame import DatasetError, FrameSource
from datasets.labels import LabelSpace
from datasets.readers import camvid, cityscapes, generated, tabled, unlabelled
from datasets.readers.folder import DatasetMissing
from protocol.doors import FOREIGN_CHOICE, Door, is_foreign, misfit
from protocol.errors import SettingError

DATASETS: dict[str, DatasetEntry] = {
    entry.name: entry
    for entry in (tabled.ENTRY, cityscapes.ENTRY, camvid.ENTRY, generated.ENTRY, unlabelled.ENTRY)
}
"""Where nobody says which it is, a folder is tried in this order: a table says it, the rest are looks."""

LABELLED: tuple[str, ...] = tuple(name for name, entry in DATASETS.items() if entry.is_labelled)
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
    functions: list[tuple[str, object, type]] = [
        ("open", entry.open, OpensFrames),
        ("ground_truth", entry.ground_truth, OpensGroundTruth),
        ("read_classes", entry.read_classes, ReadsClasses),
    ]
    if entry.splits is not None:
        functions += [
            ("splits.find", entry.splits.find, FindsSplits),
            ("splits.open", entry.splits.open, OpensSplits),
        ]
    for what, function, kind in functions:
        reason = function and misfit(function, kind)
        if reason:
            raise DATASET_DOOR.refuse(name, f"{what} {reason}")
    classes = entry.label_space
    if classes is not None and classes != _LABEL_SPACES.get(classes.name):
        classes = replace(classes, name=name)
    return replace(entry, name=name, label_space=classes)


def open_dataset(
    name: str,
    root: Path,
    network_classes: LabelSpace | None = None,
    *,
    splits: Sequence[str] | None = None,
) -> FrameSource:
    """Open the data set called `name` in the folder `root`.

    Args:
        name: see `find_dataset`.
        root: folder of the data set.
        network_classes: those of the network that looks at frames without labels; others have their own.
        splits: of a data set that has some: only the frames of these; None = as its entry opens it.

    Raises:
        SettingError: no data set has this name, or it has no classes of its own and none were given.
        DatasetMissing: it isn't there; the message says what was expected and how to get it.
        DatasetError: it is there, but incomplete or malformed.
    """
    entry = find_dataset(name)
    classes = classes_of(name, root) or network_classes
    if classes is None:
        raise SettingError(f"data set {name} has no classes of its own; name those of the network")
    with _saying_how_to_get(entry, root):
        if splits is None:
            source = entry.open(root, classes)
        else:
            assert entry.splits is not None, name
            source = entry.splits.open(root, classes, splits)
    reason = misfit(source, FrameSource)
    if reason is None and source.label_space != classes:
        reason = "has other classes than it was given"
    if reason is not None:
        raise DATASET_DOOR.refuse(name, f"what it opens {reason}")
    return source


def classes_of(name: str, root: Path) -> LabelSpace | None:
    """The classes of the data set called `name` in the folder `root`; None where it has no labels.

    Raises:
        SettingError, DatasetMissing, DatasetError: as `open_dataset`.
    """
    entry = find_dataset(name)
    with _saying_how_to_get(entry, root):
        classes = entry.classes(root)
    if classes is not None and not isinstance(classes, LabelSpace):
        raise DATASET_DOOR.refuse(name, f"read_classes must return a LabelSpace, got {classes!r}")
    return classes


@contextlib.contextmanager
def _saying_how_to_get(entry: DatasetEntry, root: Path) -> Iterator[None]:
    try:
        with DATASET_DOOR.guard(entry.name, keeping=(DatasetError, OSError)):
            yield
    except DatasetMissing as exc:
        hint = entry.how_to_get.format(root=root)
        raise DatasetMissing(f"{exc}; {hint}", expected=exc.expected) from exc


def label_space(name: str, folder: Path | None = None) -> LabelSpace:
    """Return the label table called `name`; one of somebody else's is called as their data set is.

    Args:
        name: or the path of a file that holds one, see `datasets.class_file`.
        folder: what such a path is relative to; default: the current one.

    Raises:
        SettingError: there is none; the message lists the known ones.
        DatasetError: the file is missing, or holds no table.
    """
    if is_class_file(name):
        return read_class_file(folder / name if folder else Path(name))
    if is_foreign(name):
        classes = find_dataset(name).label_space
        if classes is None:
            raise DATASET_DOOR.refuse(name, "has no classes of its own, whatever the folder")
        return classes
    try:
        return _LABEL_SPACES[name]
    except KeyError:
        raise SettingError(
            f"unknown label space {name!r}, expected one of: {', '.join(LABEL_SPACES)}, the path "
            f"of a table ({' or '.join(CLASS_FILE_ENDS)}), or the package.module:name of your own data set"
        ) from None
