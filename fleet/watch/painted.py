"""How labels, mistakes and loss maps look on a page: painted over what a vehicle sees, or by themselves.

Shapes: H height, W width, C = 3 (RGB); y x cells of a loss map.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.labels import VOID, LabelSpace
from evaluation.overlays import paint
from fleet.errors import OperatorError

Image = NDArray[np.uint8]
_ERROR_RGB = (224, 32, 48)
_LOSS_OPACITY = 0.7


def paint_label(
    image_HWC: Image | None, label_HW: Image, space: LabelSpace, size_WH: tuple[int, int]
) -> Image:
    """A label in the colours of its classes; without a picture that it lies over, in those alone."""
    if image_HWC is not None:
        return paint(image_HWC, label_HW, space)
    return space.colorize(np.asarray(cv2.resize(label_HW, size_WH, interpolation=cv2.INTER_NEAREST_EXACT)))


def paint_errors(
    image_HWC: Image | None, label_HW: Image, prediction_HW: Image, size_WH: tuple[int, int]
) -> Image:
    """The picture in grey, red where the prediction differs from a label that counts.

    Raises:
        OperatorError: they are of different sizes.
    """
    if prediction_HW.shape != label_HW.shape:
        raise OperatorError(f"the prediction is {prediction_HW.shape}, its label {label_HW.shape}")
    wrong_HW = ((prediction_HW != label_HW) & (label_HW != VOID)).astype(np.uint8)
    wrong = cv2.resize(wrong_HW, size_WH, interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)
    painted = _grey(image_HWC, size_WH)
    painted[wrong] = (painted[wrong] + 2.0 * np.array(_ERROR_RGB)) / 3
    return np.asarray(painted, np.uint8)


def paint_loss(image_HWC: Image | None, map_yx: Image, size_WH: tuple[int, int]) -> Image:
    """From black, where there was no loss, to bright yellow, where the map is 255."""
    enlarged = cv2.resize(map_yx, size_WH, interpolation=cv2.INTER_NEAREST_EXACT)
    colours = cv2.cvtColor(cv2.applyColorMap(enlarged, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    if image_HWC is None:
        return np.asarray(colours, np.uint8)
    mixed = cv2.addWeighted(colours, _LOSS_OPACITY, _grey(image_HWC, size_WH), 1 - _LOSS_OPACITY, 0)
    return np.asarray(mixed, np.uint8)


def _grey(image_HWC: Image | None, size_WH: tuple[int, int]) -> Image:
    """Three channels, all alike; half grey where there is no picture."""
    if image_HWC is None:
        return np.full((size_WH[1], size_WH[0], 3), 128, np.uint8)
    return np.repeat(cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2)
