"""The segmentation loss that a vehicle computes by itself, in numpy, with its gradient.

Legend: B frames, K classes, h w rows and columns of logits, H W of a label.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datasets.labels import VOID


def cross_entropy(
    logits_BKhw: NDArray[np.float32],
    label_Bhw: NDArray[np.uint8],
    weight_Bhw: NDArray[np.float32] | None = None,
) -> tuple[float, NDArray[np.float32]]:
    """The mean of −w · log p(label) over the batch's pixels that are not void, and its gradient at the
    logits.

    The mean is over pixels, not over weights: a pixel's part does not depend on the others' weights.

    Args:
        logits_BKhw: float32.
        label_Bhw: uint8, 255 where void; of the same frames and size.
        weight_Bhw: w, float32 and not negative, of the same frames and size; None = 1 everywhere.

    Returns:
        (loss, gradient float32 (B, K, h, w)); both 0 where all is void.
    """
    known_B1hw = (label_Bhw != VOID)[:, None]
    index_B1hw = np.where(known_B1hw, label_Bhw[:, None], 0).astype(np.intp)
    shifted_BKhw = logits_BKhw - logits_BKhw.max(axis=1, keepdims=True)
    gradient_BKhw: NDArray[np.float32] = np.exp(shifted_BKhw)
    total_B1hw = gradient_BKhw.sum(axis=1, keepdims=True)
    true_B1hw = np.take_along_axis(shifted_BKhw, index_B1hw, axis=1)
    count = max(int(known_B1hw.sum()), 1)
    loss_B1hw = np.where(known_B1hw, np.log(total_B1hw) - true_B1hw, 0)
    share_B1hw = known_B1hw.astype(np.float32) / np.float32(count)
    if weight_Bhw is not None:
        loss_B1hw = loss_B1hw * weight_Bhw[:, None]
        share_B1hw = share_B1hw * weight_Bhw[:, None]
    loss = float(loss_B1hw.sum(dtype=np.float64) / count)
    gradient_BKhw /= total_B1hw
    true_share_B1hw = np.take_along_axis(gradient_BKhw, index_B1hw, axis=1)
    np.put_along_axis(gradient_BKhw, index_B1hw, true_share_B1hw - np.float32(1), axis=1)
    gradient_BKhw *= share_B1hw
    return loss, gradient_BKhw


def downsample_label(label_HW: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """The label at the pixel nearest to each cell's centre, uint8 (h, w), as the cloud reduces it."""
    rows_h, columns_w = (
        (2 * np.arange(cells) + 1) * length // (2 * cells)
        for length, cells in zip(label_HW.shape, size_hw, strict=True)
    )
    label_hw: NDArray[np.uint8] = label_HW[rows_h[:, None], columns_w]
    return label_hw
