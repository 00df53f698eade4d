"""Which frames are worth keeping: not too close in time, and not what was kept already.

Shapes: H height, W width, h w those of a small picture.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_SMALL_WH = (32, 18)
"""Averages over areas this large hide a camera's noise, and show whether a car moves."""


class Choice:
    """Decides frame by frame; the first is kept."""

    def __init__(self, *, every_s: float, changed: float) -> None:
        """See `SourceConfig`."""
        self._every_s = every_s
        self._changed = changed
        self._kept_at_s = -np.inf
        self._kept_hw: NDArray[np.float32] | None = None

    def is_worth(self, image_HWC: NDArray[np.uint8], at_s: float) -> bool:
        """Whether a picture, uint8 BGR [H, W, 3], taken at `at_s`, is to be kept; if so, it is the last one
        that was. Going back in time, as a clock or a film that begins again may, counts as time enough."""
        if 0 <= at_s - self._kept_at_s < self._every_s:
            return False
        grey_HW = cv2.cvtColor(np.ascontiguousarray(image_HWC), cv2.COLOR_BGR2GRAY)
        small_hw = np.asarray(cv2.resize(grey_HW, _SMALL_WH, interpolation=cv2.INTER_AREA), np.float32)
        if self._kept_hw is not None:
            difference = float(np.abs(small_hw - self._kept_hw).mean()) / 255
            if difference < self._changed:
                return False
        self._kept_at_s, self._kept_hw = at_s, small_hw
        return True
