"""Pictures for a page: at most so wide, as JPEG or PNG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray


def size_within(shape_HW: Sequence[int], width_px: int) -> tuple[int, int]:
    """(width, height) of a picture of these proportions that is at most `width_px` wide, and not enlarged."""
    height, width = shape_HW[:2]
    shown = min(width_px, width)
    return shown, max(1, round(height * shown / width))


def encoded(image_HWC: NDArray[np.uint8], kind: Literal["jpeg", "png"], *, quality: int = 85) -> bytes:
    """An RGB picture as a file's content; `quality` is JPEG's, PNG loses nothing."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if kind == "jpeg" else [cv2.IMWRITE_PNG_COMPRESSION, 9]
    done, content = cv2.imencode(f".{kind}", cv2.cvtColor(image_HWC, cv2.COLOR_RGB2BGR), options)
    assert done, f"{kind} encoding refused {image_HWC.dtype} {image_HWC.shape}"
    return content.tobytes()
