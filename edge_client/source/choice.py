"""Which frames are worth keeping: not too close in time, not what was kept already, not what is known well.

Shapes: H height, W width, h w those of a small picture.
"""

from __future__ import annotations

from collections import deque

import cv2
import numpy as np
from numpy.typing import NDArray

_SMALL_WH = (32, 18)
"""Averages over areas this large hide a camera's noise, and show whether a car moves."""
_REMEMBERED = 1000
"""Frames that another one's uncertainty is compared with."""
_FEWEST = 10
"""With fewer, nobody knows what is unsure here."""


class Choice:
    """Decides frame by frame; the first is kept."""

    def __init__(self, *, every_s: float, changed: float, unsure: float | None = None) -> None:
        """See `SourceConfig`."""
        self._every_s = every_s
        self._changed = changed
        self._unsure = unsure
        self._uncertainties: deque[float] = deque(maxlen=_REMEMBERED)
        self._kept_at_s = -np.inf
        self._kept_hw: NDArray[np.float32] | None = None

    def is_worth(self, image_HWC: NDArray[np.uint8], at_s: float, uncertainty: float | None = None) -> bool:
        """Whether a picture, uint8 BGR [H, W, 3], taken at `at_s`, is to be kept; if so, it is the last one
        that was. Going back in time, as a clock or a film that begins again may, counts as time enough.

        `uncertainty`: of what the camera sees now, 0 to 1; None: nobody says, and it doesn't count."""
        if 0 <= at_s - self._kept_at_s < self._every_s:
            return False
        grey_HW = cv2.cvtColor(np.ascontiguousarray(image_HWC), cv2.COLOR_BGR2GRAY)
        small_hw = np.asarray(cv2.resize(grey_HW, _SMALL_WH, interpolation=cv2.INTER_AREA), np.float32)
        if self._kept_hw is not None:
            difference = float(np.abs(small_hw - self._kept_hw).mean()) / 255
            if difference < self._changed:
                return False
        self._kept_at_s = at_s
        if not self._is_unsure(uncertainty):
            return False
        self._kept_hw = small_hw
        return True

    def _is_unsure(self, uncertainty: float | None) -> bool:
        """Whether it is among the share that is to be kept of the frames that would be kept otherwise."""
        if self._unsure is None or uncertainty is None:
            return True
        self._uncertainties.append(uncertainty)
        known = len(self._uncertainties) >= _FEWEST
        return not known or uncertainty >= float(np.quantile(self._uncertainties, 1 - self._unsure))
