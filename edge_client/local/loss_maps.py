"""The loss maps of a head on the vehicle, in numpy, with the way back: computed as the cloud's are.

Legend: B frames, K classes, h w rows and columns of logits, y x of a loss map, a b pixels of one cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datasets.labels import VOID

Maps = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class JudgedLogits:
    """What each cell adds to its frame's loss, and how that follows the logits."""

    map_Byx: Maps
    """float32; the mean over a frame's cells is the loss of the frame."""
    slope_BKhw: NDArray[np.float32]
    """∂(pixel's share of its frame's loss)/∂(its logits)."""

    def pull_back(self, v_Byx: Maps) -> NDArray[np.float32]:
        """The gradient of ⟨map, v⟩ at the logits, float32 (B, K, h, w)."""
        (rows, columns), (h, w) = v_Byx.shape[1:], self.slope_BKhw.shape[2:]
        a, b = h // rows, w // columns
        v_Bhw = (v_Byx / np.float32(a * b)).repeat(a, axis=1).repeat(b, axis=2)
        gradient_BKhw: NDArray[np.float32] = self.slope_BKhw * v_Bhw[:, None]
        return gradient_BKhw


def judge(
    logits_BKhw: NDArray[np.float32], label_Bhw: NDArray[np.uint8] | None, cells_yx: tuple[int, int]
) -> JudgedLogits:
    """The loss maps of some logits: `loss_map` and `entropy_map` of `cloud_server.training.losses`.

    Args:
        logits_BKhw: float32.
        label_Bhw: uint8, 255 where void, of the same frames and size: the loss is the cross-entropy; None:
            it is the entropy of the predictions.
        cells_yx: rows and columns of the maps, which divide h and w.
    """
    shifted_BKhw = logits_BKhw - logits_BKhw.max(axis=1, keepdims=True)
    p_BKhw = np.exp(shifted_BKhw)
    total_B1hw = p_BKhw.sum(axis=1, keepdims=True)
    p_BKhw /= total_B1hw
    log_p_BKhw = shifted_BKhw - np.log(total_B1hw)
    if label_Bhw is None:
        share_B1hw = -(p_BKhw * log_p_BKhw).sum(axis=1, keepdims=True)
        slope_BKhw = -p_BKhw * (log_p_BKhw + share_B1hw)
    else:
        known_Bhw = label_Bhw != VOID
        pixels = label_Bhw[0].size
        factor_B = pixels / np.maximum(known_Bhw.sum(axis=(1, 2)), 1)
        factor_B1hw = (known_Bhw * factor_B[:, None, None]).astype(np.float32)[:, None]
        index_B1hw = np.where(known_Bhw, label_Bhw, 0).astype(np.intp)[:, None]
        share_B1hw = -np.take_along_axis(log_p_BKhw, index_B1hw, axis=1) * factor_B1hw
        true_B1hw = np.take_along_axis(p_BKhw, index_B1hw, axis=1)
        np.put_along_axis(p_BKhw, index_B1hw, true_B1hw - np.float32(1), axis=1)
        slope_BKhw = p_BKhw * factor_B1hw
    rows, columns = cells_yx
    frames, _, h, w = share_B1hw.shape
    cells_Byaxb = share_B1hw.reshape(frames, rows, h // rows, columns, w // columns)
    map_Byx = cells_Byaxb.mean(axis=(2, 4), dtype=np.float32)
    return JudgedLogits(map_Byx=map_Byx, slope_BKhw=slope_BKhw)
