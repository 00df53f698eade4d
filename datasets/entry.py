"""What makes a data set one that every part of the product can read: one entry of the catalog."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from datasets.frame import FrameSource
from datasets.ground_truth import FrameGroundTruth, GroundTruth
from datasets.labels import LabelSpace
from protocol.errors import SettingError

if TYPE_CHECKING:
    from datasets.generated.settings import GeneratorSettings


class Renderer(Protocol):
    """Draws the frames of a data set that isn't recorded."""

    def __call__(
        self,
        root: Path,
        settings: GeneratorSettings,
        *,
        val_frames: int = 0,
        workers: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Write every frame below `root` so that the entry's `open` reads them; go on with a part of them.

        `val_frames` more of each city are those of a split `val`, of other drives. `workers` is the number of
        processes that render, `progress` is called with (frames done, frames in all).

        Raises:
            SettingError, GeneratorFolderError: a setting is out of range, or `root` holds something else.
            OSError: `root` can't be written.
        """


class OpensFrames(Protocol):
    """Opens a folder of frames."""

    def __call__(self, root: Path, label_space: LabelSpace, /) -> FrameSource:
        """See `DatasetEntry.open`."""


class ReadsClasses(Protocol):
    """Reads what classes the labels of a folder have."""

    def __call__(self, root: Path, /) -> LabelSpace:
        """See `DatasetEntry.read_classes`."""


class OpensGroundTruth(Protocol):
    """Opens a folder of labels."""

    def __call__(self, root: Path, /) -> GroundTruth:
        """See `DatasetEntry.ground_truth`."""


class OpensSplits(Protocol):
    """Opens some of the splits that a data set was published with."""

    def __call__(self, root: Path, label_space: LabelSpace, splits: Sequence[str], /) -> FrameSource:
        """The frames of `splits` alone, names of `Splits.names`; no frame of another one.

        Raises:
            DatasetMissing, DatasetError: see `DatasetEntry.open`.
        """


class FindsSplits(Protocol):
    """Looks which splits a folder holds."""

    def __call__(self, root: Path, /) -> Sequence[str]:
        """Those of `Splits.names` that are there, in their order; none where the folder is no data set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """How a data set is divided by those who published it."""

    names: tuple[str, ...]
    """All that there may be; the first is to train on."""
    find: FindsSplits
    open: OpensSplits


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetEntry:
    """One data set: nothing else in the product knows it by name.

    A new one is a file with its reader (classes and entry included) and a line in `datasets.catalog`.
    """

    name: str
    """What options and results call it."""
    title: str
    """What people call it, in tables and reports."""
    label_space: LabelSpace | None
    """Its classes, whatever the folder; None: see `read_classes`."""
    open: OpensFrames
    """Opens a folder, with `classes(root)` or, where that is None, with the network's classes.

    Raises `DatasetMissing` where the folder doesn't hold this data set, `DatasetError` where it is incomplete
    or malformed. `datasets.readers.folder.FrameFolder` does all but finding the files.
    """
    how_to_get: str
    """Ends the message about missing data; `{root}` stands for the folder that was asked for."""
    read_classes: ReadsClasses | None = None
    """Reads the classes from the folder, where each has its own; raises as `open`. None, with `label_space`
    None: the frames have no labels, and the classes are those of the network that looks at them."""
    ground_truth: OpensGroundTruth | None = None
    """Opens a folder's labels to score predictions against; None: those of the frames that `open` finds."""
    splits: Splits | None = None
    """The published splits; None: its frames come undivided."""
    render_when_read: Callable[[Path, GeneratorSettings], None] | None = None
    """Sees to it that `open` finds all frames of these settings, and draws each when it is first read; None:
    only `render` draws, all of them."""
    render: Renderer | None = None
    """Draws the frames where there are none yet; None: they are recorded, and somebody has to bring them."""

    @property
    def is_labelled(self) -> bool:
        """Whether its frames have labels."""
        return self.label_space is not None or self.read_classes is not None

    def classes(self, root: Path) -> LabelSpace | None:
        """The classes of the frames in `root`; None where frames have no labels.

        Raises:
            DatasetMissing, DatasetError: as `open`.
        """
        return self.label_space if self.read_classes is None else self.read_classes(root)

    def open_ground_truth(self, folder: Path) -> GroundTruth:
        """The labels in `folder`, to score predictions against.

        Raises:
            DatasetMissing, DatasetError: as `open`.
            SettingError: the data set has no labels.
        """
        classes = self.classes(folder)
        if classes is None:
            raise SettingError(f"data set {self.name} has no labels to score predictions against")
        if self.ground_truth is not None:
            return self.ground_truth(folder)
        return FrameGroundTruth(self.open(folder, classes))
