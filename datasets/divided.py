"""A data set whose vehicles divide the training split alone, with the frames that they are all scored on.

The official protocol: nobody trains, validates or chooses on the test split. It is `val` or `test` of a data
set that was published in splits, or all frames of another folder in the same layout.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.catalog import find_dataset, open_dataset
from datasets.frame import DatasetError, Frame, FrameRef, FrameSource
from datasets.labels import LabelSpace


class DividedFrames:
    """Both parts as one `FrameSource`."""

    def __init__(self, owned: FrameSource, test: FrameSource) -> None:
        """`owned` are the frames that vehicles divide.

        Raises:
            DatasetError: a frame is in both, by its key, or the parts have different classes.
        """
        if owned.label_space != test.label_space:
            raise DatasetError(
                f"the test split has the classes {', '.join(test.label_space.train_names)}, the frames to "
                f"train on have {', '.join(owned.label_space.train_names)}; both must have the same"
            )
        self.owned = owned
        self.test = test
        self._test_keys = frozenset(ref.key for ref in test.refs)
        shared = next((ref for ref in owned.refs if ref.key in self._test_keys), None)
        if shared is not None:
            raise DatasetError(
                f"frame {shared.key} is in the test split and among those to train on ({shared.image_path}); "
                f"give a test split of other frames"
            )
        self.refs: tuple[FrameRef, ...] = tuple(sorted((*owned.refs, *test.refs)))
        self.colours = [(type(part).__qualname__, getattr(part, "colours", None)) for part in (owned, test)]
        """What decides how the labels of the parts are read."""

    @property
    def label_space(self) -> LabelSpace:
        """See `FrameSource.label_space`."""
        return self.owned.label_space

    def load(self, ref: FrameRef) -> Frame:
        """See `FrameSource.load`."""
        return self._part(ref).load(ref)

    def load_image(self, ref: FrameRef) -> NDArray[np.uint8]:
        """See `FrameSource.load_image`."""
        return self._part(ref).load_image(ref)

    def load_label(self, ref: FrameRef) -> NDArray[np.uint8]:
        """See `FrameSource.load_label`."""
        return self._part(ref).load_label(ref)

    def _part(self, ref: FrameRef) -> FrameSource:
        return self.test if ref.key in self._test_keys else self.owned


def open_frames(
    name: str, root: Path, test_split: str | None, network_classes: LabelSpace | None = None
) -> FrameSource:
    """Open a data set: all of it, or, with a test split, `DividedFrames`.

    Args:
        name, root, network_classes: see `open_dataset`.
        test_split: a split of the data set that isn't the one to train on, or the path of a folder.

    Raises:
        SettingError, DatasetError: see `open_dataset`.
        DatasetError: the data set has no such split, or a split is missing or empty.
    """
    if test_split is None:
        return open_dataset(name, root, network_classes)
    splits = find_dataset(name).splits
    if splits is not None and test_split in splits.names[1:]:
        owned = _open_split(name, root, splits.names[0], network_classes)
        return DividedFrames(owned, _open_split(name, root, test_split, network_classes))
    folder = Path(test_split)
    if not folder.is_dir():
        own = f"{', '.join(splits.names[1:])} or " if splits else ""
        raise DatasetError(
            f"no test split {test_split!r}: {name} takes {own}the path of a folder in the same layout"
        )
    if splits is None or not splits.find(root):
        owned = open_dataset(name, root, network_classes)
    else:
        owned = _open_split(name, root, splits.names[0], network_classes)
    # All that the other folder holds, in whatever splits.
    present = splits.find(folder) if splits else ()
    test = open_dataset(name, folder, network_classes, splits=present or None)
    if not test.refs:
        raise DatasetError(f"no frames in {folder}, the test split; give a folder that holds some")
    return DividedFrames(owned, test)


def owned_frames(source: FrameSource) -> FrameSource:
    """What of `open_frames` vehicles divide."""
    return source.owned if isinstance(source, DividedFrames) else source


def split_keys(source: FrameSource) -> tuple[str, ...]:
    """The keys of the test split in key order; none where `open_frames` was given none."""
    return tuple(ref.key for ref in source.test.refs) if isinstance(source, DividedFrames) else ()


def _open_split(name: str, root: Path, split: str, network_classes: LabelSpace | None) -> FrameSource:
    splits = find_dataset(name).splits
    assert splits is not None, name
    present = splits.find(root)
    if not present:
        open_dataset(name, root, network_classes)  # says what is missing, if it is the whole data set
    if split not in present:
        raise DatasetError(
            f"{name} in {root} has no split {split}, it has "
            f"{', '.join(present) or 'none: its frames lie undivided'}; without --test-split vehicles divide "
            f"all that is there"
        )
    source = open_dataset(name, root, network_classes, splits=(split,))
    if not source.refs:
        raise DatasetError(f"split {split} of {name} in {root} is empty; put its frames there")
    return source
