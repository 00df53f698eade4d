"""From a model's scores to its likeliest classes and how sure it is, at a picture's size.

Shapes: K classes of the teacher, h w rows and columns of its scores, H W those of the picture.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.labels import VOID

_CLOSE = 1e-3
_SMALLEST = 1e-12


def as_logits(scores_Khw: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits of scores that are such, or probabilities: not negative, and a sum of 1 in each pixel."""
    sums_hw = scores_Khw.sum(axis=0)
    if scores_Khw.min() < 0 or np.abs(sums_hw - 1).max() > _CLOSE:
        return scores_Khw
    return np.asarray(np.log(np.maximum(scores_Khw, np.float32(_SMALLEST))), np.float32)


def likely_classes(
    logits_Khw: NDArray[np.float32], train_ids_K: NDArray[np.uint8], size_HW: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The likeliest trainId of each pixel and its probability, uint8 and float32 [H, W].

    Logits are enlarged bilinearly; probabilities of the teacher's classes that stand for the same trainId, or
    for none (`VOID`), are added. Of equal ones the first in `train_ids_K` wins. Two maps of a picture's size
    are held for each trainId at most.

    Args:
        logits_Khw: of one picture.
        train_ids_K: what each of the teacher's classes stands for; `VOID`: nothing.
        size_HW: of the picture.
    """
    height, width = size_HW

    def enlarged(k: int) -> NDArray[np.float32]:
        if logits_Khw.shape[1:] == size_HW:
            return np.asarray(logits_Khw[k], np.float32)
        resized = cv2.resize(logits_Khw[k], (width, height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(resized, np.float32)

    highest_HW = enlarged(0).copy()
    for k in range(1, len(logits_Khw)):
        np.maximum(highest_HW, enlarged(k), out=highest_HW)
    order = list(dict.fromkeys(train_ids_K.tolist()))
    total_HW = np.zeros(size_HW, np.float32)
    best_HW = np.full(size_HW, -1, np.float32)
    label_HW = np.full(size_HW, VOID, np.uint8)
    for train_id in order:
        mass_HW = np.zeros(size_HW, np.float32)
        for k in np.flatnonzero(train_ids_K == train_id):
            mass_HW += np.exp(enlarged(int(k)) - highest_HW)
        total_HW += mass_HW
        more_HW = mass_HW > best_HW
        label_HW[more_HW] = train_id
        np.maximum(best_HW, mass_HW, out=best_HW)
    return label_HW, best_HW / total_HW
