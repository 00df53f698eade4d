"""From a network's logits to a label map of any size, as the cloud does it.

Shapes: K classes, h w logit rows and columns, H W those of the label map.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def likeliest(logits_Khw: NDArray[np.float32], size_HW: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the likeliest trainId of each pixel, uint8 [H, W]; logits are enlarged bilinearly.

    One class after another, so that the logits of one class alone are in memory at that size.
    """
    height, width = size_HW

    def enlarged(logits_hw: NDArray[np.float32]) -> NDArray[np.float32]:
        if logits_hw.shape == size_HW:
            return logits_hw
        return np.asarray(cv2.resize(logits_hw, (width, height), interpolation=cv2.INTER_LINEAR))

    best_HW = enlarged(logits_Khw[0]).copy()
    label_HW = np.zeros(size_HW, np.uint8)
    for train_id in range(1, len(logits_Khw)):
        logits_HW = enlarged(logits_Khw[train_id])
        higher_HW = logits_HW > best_HW
        label_HW[higher_HW] = train_id
        np.maximum(best_HW, logits_HW, out=best_HW)
    return label_HW
