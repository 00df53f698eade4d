"""Random views of a frame, alike on a vehicle, which has the picture, and in the cloud, which has the label.

A view is a function of a seed alone. What is done to labels and maps is whole-number arithmetic: the same on
every machine. Legend: H W rows and columns of a frame, y x those of a map over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from protocol.noise import derive_seed, uniform
from protocol.plans.augmentation import Augmentation

_LUMA = np.array([0.299, 0.587, 0.114])
"""Of R, G, B (ITU-R BT.601)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What of a frame is shown, and how."""

    size: tuple[int, int]
    """Width and height in pixels of the frame that `box` is measured in."""
    box: tuple[int, int, int, int]
    """Left, top, width and height of what is enlarged to the frame's size."""
    flip: bool = False
    """Mirrored left to right, after the cut."""
    tone: tuple[float, float, float] | None = None
    """Factors of brightness, contrast and saturation; None = colours as they are."""

    def image(self, image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The picture of a frame of `size`, uint8 RGB, as it is shown, of the same size."""
        left, top, width, height = self.box
        shown_HWC = image_HWC[top : top + height, left : left + width]
        if (width, height) != self.size:
            shown_HWC = cv2.resize(shown_HWC, self.size, interpolation=cv2.INTER_LINEAR).astype(np.uint8)
        if self.flip:
            shown_HWC = shown_HWC[:, ::-1]
        if self.tone is not None:
            shown_HWC = _toned(np.ascontiguousarray(shown_HWC), self.tone)
        return np.ascontiguousarray(shown_HWC)

    def label(self, label_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The label as it is shown: at each pixel the one that lies nearest below it."""
        height, width = label_HW.shape
        seen_HW: NDArray[np.uint8] = label_HW[self._rows(height)[:, None], self._columns(width)]
        return seen_HW

    def map(self, map_yx: NDArray[np.float32]) -> NDArray[np.float32]:
        """A map over the whole frame as one over what is shown, of as many cells, each the nearest."""
        rows, columns = map_yx.shape
        seen_yx: NDArray[np.float32] = map_yx[self._rows(rows)[:, None], self._columns(columns)]
        return seen_yx

    def whole_map(self, map_yx: NDArray[np.float32], unseen: float) -> NDArray[np.float32]:
        """A map over what is shown as one over the whole frame, of as many cells; `unseen` where that was cut
        off."""
        left, top, width, height = self.box
        rows, row_is_seen = _cells_back(map_yx.shape[0], self.size[1], top, height)
        columns, column_is_seen = _cells_back(map_yx.shape[1], self.size[0], left, width)
        if self.flip:
            columns = map_yx.shape[1] - 1 - columns
        is_seen_yx = row_is_seen[:, None] & column_is_seen
        whole_yx: NDArray[np.float32] = np.where(
            is_seen_yx, map_yx[rows[:, None], columns], np.float32(unseen)
        )
        return whole_yx

    def _rows(self, length: int) -> NDArray[np.intp]:
        _, top, _, height = self.box
        return _cells(length, self.size[1], top, height)

    def _columns(self, length: int) -> NDArray[np.intp]:
        left, _, width, _ = self.box
        columns = _cells(length, self.size[0], left, width)
        return columns[::-1] if self.flip else columns


WHOLE = View(size=(1, 1), box=(0, 0, 1, 1))
"""Shows a frame's label or map as it is."""


def view_seed(turn_seed: int, draw: int, index: int) -> int:
    """The seed of the view of a frame in a draw, which is a pass over the train frames of a turn."""
    return derive_seed(turn_seed, "augmentation", draw, index)


def draw_view(augmentation: Augmentation, size: tuple[int, int], seed: int) -> View:
    """A view of a frame of this width and height, drawn from `seed`.

    The box has the frame's shape, sides of a share drawn from [crop, 1), and lies anywhere in the frame.
    """
    mirrored, scale, across, down, *tone = uniform(seed, 7).tolist()
    share = augmentation.crop + (1 - augmentation.crop) * scale if augmentation.crop > 0 else 1.0
    width, height = (max(1, int(share * side + 0.5)) for side in size)
    left, top = int(across * (size[0] - width + 1)), int(down * (size[1] - height + 1))
    brightness, contrast, saturation = (1 + augmentation.jitter * (2 * number - 1) for number in tone)
    return View(
        size=size,
        box=(left, top, width, height),
        flip=augmentation.flip and mirrored < 0.5,
        tone=(brightness, contrast, saturation) if augmentation.jitter > 0 else None,
    )


def seen_labels(label_BHW: NDArray[np.uint8], views: Sequence[View]) -> NDArray[np.uint8]:
    """Labels as their frames were seen, uint8 [B, H, W]; no views: as they are."""
    if not views:
        return label_BHW
    return np.stack([view.label(label_HW) for view, label_HW in zip(views, label_BHW, strict=True)])


def _cells(length: int, side: int, first: int, extent: int) -> NDArray[np.intp]:
    """Of `length` cells over pixels `first` to `first + extent` of a side of `side` pixels: which of `length`
    cells over the whole side lies under each one's centre."""
    doubled = 2 * length * first + (2 * np.arange(length) + 1) * extent
    cells: NDArray[np.intp] = doubled // (2 * side)
    return cells


def _cells_back(
    length: int, side: int, first: int, extent: int
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """The other way round, and which cells of the whole side lie in the part at all."""
    doubled = (2 * np.arange(length) + 1) * side - 2 * length * first
    is_seen = (doubled >= 0) & (doubled < 2 * length * extent)
    return np.where(is_seen, doubled // (2 * extent), 0), is_seen


def _toned(image_HWC: NDArray[np.uint8], tone: tuple[float, float, float]) -> NDArray[np.uint8]:
    """Brightness first, then contrast around the mean grey, then saturation around each pixel's own."""
    brightness, contrast, saturation = tone
    grey = brightness * float(_LUMA @ np.array(cv2.mean(image_HWC)[:3]))
    mix_33 = saturation * np.eye(3) + (1 - saturation) * np.tile(_LUMA, (3, 1))
    matrix_34 = np.hstack([brightness * contrast * mix_33, np.full((3, 1), (1 - contrast) * grey)])
    return cv2.transform(image_HWC, matrix_34.astype(np.float32)).astype(np.uint8)
