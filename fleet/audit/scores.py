"""How well an attack has done: pictures against frames, and who was told from whom.

Shapes: H W rows and columns, N pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

MOST_PSNR_DB = 100.0
"""Of a picture that is the frame to the bit: infinity has no place in a file."""
_WINDOW_PX = 11
_SIGMA_PX = 1.5
_STABLE = ((0.01 * 255) ** 2, (0.03 * 255) ** 2)
_SHARE_OF_COLOUR = np.array([0.299, 0.587, 0.114])


def psnr(image_HWC: Pixels, other_HWC: Pixels) -> float:
    """Peak signal-to-noise ratio of two pictures uint8 RGB, in dB; at most `MOST_PSNR_DB`."""
    error = float(np.mean((image_HWC.astype(np.float64) - other_HWC.astype(np.float64)) ** 2))
    return MOST_PSNR_DB if error == 0 else min(MOST_PSNR_DB, 10 * math.log10(255**2 / error))


def ssim(image_HWC: Pixels, other_HWC: Pixels) -> float:
    """Structural similarity of two pictures uint8 RGB, −1 to 1, of their luminance.

    As Wang et al. define it (2004): Gaussian windows of 11 pixels with σ 1.5, K 0.01 and 0.03, the mean over
    windows that lie within the picture.
    """
    if min(image_HWC.shape[:2]) < _WINDOW_PX:
        raise ValueError(f"SSIM needs {_WINDOW_PX} pixels each way, got {image_HWC.shape}")
    x_HW, y_HW = image_HWC @ _SHARE_OF_COLOUR, other_HWC @ _SHARE_OF_COLOUR
    mean_x, mean_y = _windows(x_HW), _windows(y_HW)
    variance_x, variance_y = _windows(x_HW**2) - mean_x**2, _windows(y_HW**2) - mean_y**2
    covariance = _windows(x_HW * y_HW) - mean_x * mean_y
    first, second = _STABLE
    similar = (2 * mean_x * mean_y + first) * (2 * covariance + second)
    return float(np.mean(similar / ((mean_x**2 + mean_y**2 + first) * (variance_x + variance_y + second))))


def _windows(values_HW: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian means over the windows that lie within."""
    edge = _WINDOW_PX // 2
    blurred_HW = cv2.GaussianBlur(values_HW, (_WINDOW_PX, _WINDOW_PX), _SIGMA_PX)
    return np.asarray(blurred_HW, np.float64)[edge:-edge, edge:-edge]


def auc(members_N: Sequence[float], others_N: Sequence[float]) -> float:
    """How often a member has the higher of two values, one of each kind; equals count half. 0.5 = chance."""
    members, others = np.asarray(members_N), np.asarray(others_N)
    difference = members[:, None] - others[None, :]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))
