"""Sums over windows of a loss map, and what estimators that read one share."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from protocol.errors import SettingError


def check_distance(name: str, value: float) -> None:
    """Raise a `SettingError` where it is not positive and finite."""
    if not (math.isfinite(value) and value > 0):
        raise SettingError(f"{name} must be positive, got {value}")


def map_size(feature_shape: tuple[int, ...], stride: int) -> tuple[int, int]:
    """Rows and columns of a loss map of features (…, H, W) whose cells cover `stride` features a side.

    Raises:
        SettingError: the stride doesn't divide them.
    """
    height, width = feature_shape[-2:]
    if height % stride or width % stride:
        raise SettingError(f"map stride {stride} must divide the feature map of {height}x{width}")
    return height // stride, width // stride


def check_maps(maps_BMyx: NDArray[np.floating], expected: tuple[int, ...]) -> None:
    """Check what came back for a question.

    Raises:
        ValueError: another shape than was asked for, or a number that is not finite.
    """
    if maps_BMyx.shape != expected or not np.isfinite(maps_BMyx).all():
        raise ValueError(f"expected finite loss maps {expected}, got {maps_BMyx.shape}")


def box_sum(maps_BKyx: NDArray[np.floating], width: int) -> NDArray[np.float64]:
    """Each cell replaced by the sum over the `width` × `width` window around it, cut at the borders."""
    total = maps_BKyx.astype(np.float64)
    for axis in (2, 3):
        centre = np.arange(total.shape[axis])
        total = range_sums(total, axis, centre - width // 2, centre + width // 2 + 1)
    return total


def range_sums(
    values: NDArray[np.float64], axis: int, first: NDArray[np.int64], stop: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Along an axis the sums over ranges, cut at its ends."""
    length = values.shape[axis]
    edges = np.zeros((*values.shape[:axis], 1, *values.shape[axis + 1 :]))
    running = np.concatenate([edges, np.cumsum(values, axis=axis)], axis=axis)
    total: NDArray[np.float64] = running.take(np.minimum(stop, length), axis=axis)
    total -= running.take(np.maximum(first, 0), axis=axis)
    return total
