"""What the cloud knows of how often classes occur: from the train labels that it holds.

Legend: K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cloud_server.storage.label_store import LabelStore
from datasets.class_weights import balanced_weights, count_classes, table_weights
from datasets.labels import LabelSpace
from protocol.plans.class_weights import NONE, ClassWeights

_Counted = tuple[bytes, NDArray[np.int64]]
"""The label's digest, and its pixels by class."""


class ClassCounts:
    """Pixels by class in the labels of vehicles' train frames; each label is counted once."""

    def __init__(
        self, labels: LabelStore, train_frames: Callable[[str], Sequence[int]], *, classes: int
    ) -> None:
        """`train_frames` gives a vehicle's train frames; `classes` is K."""
        self._labels = labels
        self._train_frames = train_frames
        self._classes = classes
        self._counted: dict[tuple[str, int], _Counted] = {}
        self._totals: dict[tuple[str, ...], tuple[int, NDArray[np.int64]]] = {}
        """By vehicles: how many labels there had been, and the sum."""

    def of(self, vehicles: Sequence[str]) -> NDArray[np.int64]:
        """Over the labels that are here of these vehicles, int64 (K,)."""
        key = tuple(vehicles)
        additions, total_K = self._totals.get(key, (-1, np.zeros(0, np.int64)))
        if additions != self._labels.additions:
            total_K = np.zeros(self._classes, np.int64)
            for vehicle in key:
                for index in self._train_frames(vehicle):
                    total_K += self._count(vehicle, index)
            self._totals[key] = (self._labels.additions, total_K)
        return total_K

    def _count(self, vehicle: str, index: int) -> NDArray[np.int64]:
        digest = self._labels.digest(vehicle, index)
        if digest is None:
            return np.zeros(self._classes, np.int64)
        known = self._counted.get((vehicle, index))
        if known is None or known[0] != digest:
            [label_HW] = self._labels.get(vehicle, [index])
            known = self._counted[vehicle, index] = (digest, count_classes(label_HW, self._classes))
        return known[1]


def class_weights_of(
    weights: ClassWeights, classes: LabelSpace, counts: ClassCounts
) -> Callable[[Sequence[str]], NDArray[np.float32]] | None:
    """From vehicles whose frames a network learns from to its weights, float32 (K,); None = all alike.

    Raises:
        SettingError: a table names a class that is not among `classes`.
    """
    if weights == NONE:
        return None
    if isinstance(weights, str):
        return lambda vehicles: balanced_weights(counts.of(vehicles))
    fixed_K = table_weights(weights, classes)
    return lambda vehicles: fixed_K
