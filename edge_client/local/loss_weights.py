"""How much each place of a vehicle's frames counts in its own loss, by where the cloud's loss lies.

Legend: n frames, B frames of a batch, y x cells of a loss map, h w pixels of the vehicle's logits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datasets.labels import VOID
from protocol.errors import SettingError


def known_shares(label_hw: NDArray[np.uint8], cells_yx: tuple[int, int]) -> NDArray[np.float32]:
    """The share of each cell's pixels that is not void, float32 (y, x).

    Raises:
        SettingError: the cells are no whole numbers of pixels.
    """
    (h, w), (y, x) = label_hw.shape, cells_yx
    if h % y or w % x:
        raise SettingError(f"a loss map of {y}x{x} cells doesn't fit logits of {h}x{w} pixels")
    known_yaxb = (label_hw != VOID).reshape(y, h // y, x, w // x)
    share_yx: NDArray[np.float32] = known_yaxb.mean(axis=(1, 3), dtype=np.float32)
    return share_yx


def cell_weights(
    map_nyx: NDArray[np.float32], known_nyx: NDArray[np.float32], *, power: float, cap: float
) -> NDArray[np.float32]:
    """The weight of each cell's pixels, w ∝ min(ℓ / mean ℓ, cap)^power, with mean 1 over all known pixels.

    A loss map holds what a cell adds to its frame's loss, so that cells with void in them come out too low
    and those of a frame with much void too high; ℓ, the mean loss of a cell's known pixels, undoes that.

    Args:
        map_nyx: a vehicle's loss maps, float32, not negative; the mean of each is its frame's loss.
        known_nyx: `known_shares` of the same frames.
        power: above 0.
        cap: 1 or more.

    Returns:
        float32 (n, y, x); all 1 where there is no loss anywhere.
    """
    known = known_nyx.astype(np.float64)
    known_pixels = known.sum()
    loss = np.zeros_like(known)
    np.divide(map_nyx * known.mean(axis=(1, 2), keepdims=True), known, out=loss, where=known > 0)
    total_loss = (loss * known).sum()
    if not total_loss > 0:
        return np.ones_like(map_nyx)
    weight = np.minimum(loss * (known_pixels / total_loss), cap) ** power
    weight *= known_pixels / (weight * known).sum()
    weight_nyx: NDArray[np.float32] = weight.astype(np.float32)
    return weight_nyx


def spread(weight_Byx: NDArray[np.float32], size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Each cell's weight at each of its pixels, float32 (B, h, w); y, x must divide h, w."""
    rows, columns = (size // cells for size, cells in zip(size_hw, weight_Byx.shape[1:], strict=True))
    return weight_Byx.repeat(rows, axis=1).repeat(columns, axis=2)
