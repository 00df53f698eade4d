"""Weights of classes in a loss, from how often they occur or from a table.

Legend: K classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from datasets.labels import LabelSpace
from protocol.errors import SettingError

_SOFTENING = 1.02


def count_classes(label: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Pixels of each class in labels of any shape, int64 (K,); void is not counted."""
    counts_K: NDArray[np.int64] = np.bincount(label.ravel(), minlength=256)[:classes].astype(np.int64)
    return counts_K


def balanced_weights(counts_K: NDArray[np.int64]) -> NDArray[np.float32]:
    """Inverse log frequency, w ∝ 1 / ln(1.02 + p) with p the share of a class (ENet, Paszke et al., arXiv
    1606.02147, section 5.2), scaled so that the mean over the counted pixels is 1; float32 (K,).

    The logarithm bounds the weights: the rarest class has at most 51 times that of one that is everywhere.
    """
    total = counts_K.sum()
    if total == 0:
        return np.ones(len(counts_K), np.float32)
    share_K = counts_K / total
    weight_K = 1 / np.log(_SOFTENING + share_K)
    balanced_K: NDArray[np.float32] = (weight_K / (share_K @ weight_K)).astype(np.float32)
    return balanced_K


def table_weights(table: Mapping[str, float], classes: LabelSpace) -> NDArray[np.float32]:
    """A table's weights by trainId, 1 where it names none; float32 (K,).

    Raises:
        SettingError: it names a class that is not among them.
    """
    names = classes.train_names
    strange = next((name for name in table if name not in names), None)
    if strange is not None:
        raise SettingError(
            f"class_weights names {strange!r}, which is no class of {classes.name}: {', '.join(names)}"
        )
    return np.array([table.get(name, 1.0) for name in names], np.float32)


def pixel_weights(weight_K: NDArray[np.float32], label: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Each pixel's weight by its class, float32 of the label's shape; 0 where it is void."""
    by_id = np.zeros(256, np.float32)
    by_id[: len(weight_K)] = weight_K
    weights: NDArray[np.float32] = by_id[label]
    return weights
