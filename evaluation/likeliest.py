"""From a network's logits to a label map of any size, as the cloud does it, and how sure it is.

Shapes: K classes, h w logit rows and columns, H W those of the label map.
"""

from __future__ import annotations

import math

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


def uncertainty(logits_Khw: NDArray[np.float32]) -> float:
    """The mean over all pixels of the entropy of the predicted classes, as a share of the greatest there is.

    0: every pixel is sure; 1: all classes are alike everywhere.
    """
    classes = len(logits_Khw)
    if classes < 2:
        return 0.0
    shifted_Khw = logits_Khw - logits_Khw.max(axis=0)
    likely_Khw = np.exp(shifted_Khw)
    total_hw = likely_Khw.sum(axis=0)
    entropy_hw = np.log(total_hw) - (likely_Khw * shifted_Khw).sum(axis=0) / total_hw
    return min(1.0, max(0.0, float(entropy_hw.mean()) / math.log(classes)))
