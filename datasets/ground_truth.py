"""The true labels that predictions are compared with: found by frame key, read as label ids.

Shapes: H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from datasets.frame import FrameSource
from datasets.labels import LabelSpace


@dataclass(frozen=True, slots=True, eq=False)
class TrueLabels:
    """One frame's ground truth."""

    ids_HW: NDArray[np.uint8]
    """Label ids of the data set."""
    instance_HW: NDArray[np.int32] | None
    """Cityscapes instance ids, None where there is no such file."""


class GroundTruth(Protocol):
    """The labels of a data set."""

    @property
    def label_space(self) -> LabelSpace:
        """The classes that the ids speak of."""

    @property
    def keys(self) -> frozenset[str]:
        """The frames that have labels."""

    def key_of(self, stem: str) -> str | None:
        """Return the frame key that the name of a prediction file (without extension) starts with, or None.

        A key need not be one of `keys`: the name may be right and the ground truth missing.
        """

    def load(self, key: str) -> TrueLabels:
        """Read one frame's labels.

        Raises:
            DatasetError: a file is unreadable, of the wrong kind, or holds unknown ids.
        """


class FrameGroundTruth:
    """The labels of a data set's frames, whatever its layout; void classes are not told apart."""

    def __init__(self, source: FrameSource) -> None:
        self._source = source
        self._refs = {ref.key: ref for ref in source.refs if ref.label_path is not None}
        self.label_space = source.label_space
        self.keys = frozenset(self._refs)

    def key_of(self, stem: str) -> str | None:
        """The longest key that ends in the name at an underscore, or at its end."""
        parts = stem.split("_")
        prefixes = ("_".join(parts[:count]) for count in range(len(parts), 0, -1))
        return next((prefix for prefix in prefixes if prefix in self.keys), None)

    def load(self, key: str) -> TrueLabels:
        """See `GroundTruth.load`."""
        label_HW = self._source.load_label(self._refs[key])
        return TrueLabels(self.label_space.to_ids(label_HW), None)
