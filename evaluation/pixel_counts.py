"""Counting pairs of pixel values, and dividing the counts: what all IoU scores are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datasets.labels import LabelSpace


def joint_histogram(label_HW: NDArray[np.uint8], prediction_HW: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return int64 [256, 256]: how many pixels hold each pair (ground truth, prediction).

    Raises:
        ValueError: the shapes differ or a type is not uint8.
    """
    if label_HW.shape != prediction_HW.shape:
        raise ValueError(
            f"ground truth and prediction must have one shape, got {label_HW.shape} and {prediction_HW.shape}"
        )
    if label_HW.dtype != np.uint8 or prediction_HW.dtype != np.uint8:
        raise ValueError(
            f"ground truth and prediction must be uint8, got {label_HW.dtype} and {prediction_HW.dtype}"
        )
    pairs = (label_HW.astype(np.uint16) << 8) | prediction_HW
    return np.bincount(pairs.ravel(), minlength=1 << 16).reshape(256, 256).astype(np.int64, copy=False)


def categories_of(label_space: LabelSpace) -> dict[str, list[int]]:
    """Return the trainIds of each category that has evaluated classes, categories in table order."""
    categories: dict[str, list[int]] = {}
    for c in label_space.trained_classes:
        categories.setdefault(c.category, []).append(c.train_id)
    return categories


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> NDArray[np.float64]:
    """Divide elementwise as float64; NaN where the denominator is zero."""
    over = np.asarray(denominator, np.float64)
    quotient: NDArray[np.float64] = np.full(over.shape, np.nan)
    np.divide(np.asarray(numerator, np.float64), over, out=quotient, where=over != 0)
    return quotient


def mean_of_defined(scores: Sequence[float] | NDArray[Any]) -> float:
    """Return the mean of the scores that are not NaN, NaN if there are none."""
    values = np.asarray(scores, np.float64)
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
