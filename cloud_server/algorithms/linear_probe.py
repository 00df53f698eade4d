"""How much features say of their own frames' labels: a linear probe (Alain and Bengio 2016), no network.

Shapes: B frames, C channels, h w feature rows and columns, H W label rows and columns, K classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datasets.labels import VOID

_ALIKE = 0.9
"""Share of pixels with the same label in two frames, above which the frames look alike."""
_FEWEST_CELLS = 256
"""Below so many, chance explains as much as features do."""


def explained_share(
    features_BCHW: NDArray[np.float32], label_BHW: NDArray[np.uint8], num_classes: int
) -> float | None:
    """The share that features explain of what sets labels apart from other frames' at the same place.

    Labels are shares of classes in each feature cell. From features and shares the mean over the frames at
    the same place is taken away, so that sky above and road below explain nothing. A ridge regression (its λ
    the mean eigenvalue) is fitted to all frames but one, and predicts that; for each frame.
    Honest features explain a tenth or two, in any street, of a random or a trained encoder. Noise, or one
    frame's features for every frame, explain nothing: 1 − (squared error) / (squares) is 0 or a little less.

    Returns:
        At most 1. None where that can't be told: few cells, or frames that are alike, as of a vehicle that
        stands still.
    """
    frames, _, height, width = features_BCHW.shape
    share_BhwK, known_Bhw = class_shares(label_BHW, (height, width), num_classes)
    if frames < 2 or known_Bhw.sum() < _FEWEST_CELLS or alikeness(label_BHW) > _ALIKE:
        return None
    feature_BhwC = features_BCHW.transpose(0, 2, 3, 1).astype(np.float64)
    error = total = 0.0
    for left_out in range(frames):
        fitted_B = np.arange(frames) != left_out
        count_hw1 = np.maximum(1, known_Bhw[fitted_B].sum(axis=0))[..., None]
        x_BhwC = feature_BhwC - feature_BhwC[fitted_B].mean(axis=0)
        y_BhwK = share_BhwK - share_BhwK[fitted_B].sum(axis=0) / count_hw1
        x_nC, y_nK = (values[fitted_B][known_Bhw[fitted_B]] for values in (x_BhwC, y_BhwK))
        gram_CC = x_nC.T @ x_nC
        ridge = float(np.trace(gram_CC)) / len(gram_CC)
        weight_CK = np.linalg.solve(gram_CC + (ridge or 1.0) * np.eye(len(gram_CC)), x_nC.T @ y_nK)
        x_nC, y_nK = (values[left_out][known_Bhw[left_out]] for values in (x_BhwC, y_BhwK))
        error += float(((y_nK - x_nC @ weight_CK) ** 2).sum())
        total += float((y_nK**2).sum())
    return 1 - error / total if total > 0 else None


def class_shares(
    label_BHW: NDArray[np.uint8], size_hw: tuple[int, int], num_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Shares of the classes among each cell's pixels that have one, (B, h, w, K), and which cells have any;
    shares of others are 0."""
    frames, height, width = label_BHW.shape
    rows, columns = size_hw
    row_H, column_W = np.arange(height) * rows // height, np.arange(width) * columns // width
    cell_HW = row_H[:, None] * columns + column_W
    count_BhwK = np.zeros((frames, rows, columns, num_classes), np.int64)
    for label_HW, count_hwK in zip(label_BHW, count_BhwK, strict=True):
        known_HW = label_HW < num_classes
        places = cell_HW[known_HW] * num_classes + label_HW[known_HW]
        count_hwK[...] = np.bincount(places, minlength=count_hwK.size).reshape(count_hwK.shape)
    pixels_Bhw1 = count_BhwK.sum(axis=-1, keepdims=True)
    return count_BhwK / np.maximum(1, pixels_Bhw1), pixels_Bhw1[..., 0] > 0


def alikeness(label_BHW: NDArray[np.uint8]) -> float:
    """Share of pixels that have the same label in two frames, over all pairs; 1 for one frame."""
    known_BHW = label_BHW != VOID
    same = both = 0
    for number, label_HW in enumerate(label_BHW):
        others = slice(number + 1, None)
        both_BHW = known_BHW[others] & known_BHW[number]
        both += int(both_BHW.sum())
        same += int(((label_BHW[others] == label_HW) & both_BHW).sum())
    return same / both if both else 1.0
