"""Labels as a vehicle tells them: outlines in squares, where it is set so."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def coarsen_label(label_HW: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Each square of `side` pixels, from the top left on, in the trainId that most of its pixels have, uint8
    (H, W): VOID counts as one of them, ties go to the lowest, squares at the right and bottom may be cut."""
    if side == 1:
        return label_HW
    side = min(side, max(label_HW.shape))
    firsts = [np.arange(0, length, side) for length in label_HW.shape]
    most_hw = np.zeros([len(first) for first in firsts], np.intp)
    coarse_hw = np.zeros(most_hw.shape, np.uint8)
    for train_id in np.unique(label_HW):
        count_hw = np.add.reduceat((label_HW == train_id).astype(np.intp), firsts[0], axis=0)
        count_hw = np.add.reduceat(count_hw, firsts[1], axis=1)
        coarse_hw[count_hw > most_hw] = train_id
        most_hw = np.maximum(most_hw, count_hw)
    rows_H, columns_W = (np.arange(length) // side for length in label_HW.shape)
    told_HW: NDArray[np.uint8] = coarse_hw[rows_H[:, None], columns_W]
    return told_HW
