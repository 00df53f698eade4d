"""A vehicle's train frames as a turn's augmentation shows them: picture and label alike.

Legend: B frames of a batch, H W rows and columns of the encoder's input.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from datasets.augment import View, draw_view, view_seed
from edge_client.frames import VehicleFrames
from protocol.messages import Turn


class TrainViews:
    """What a turn's learning sees; every draw follows from the turn's seed, so the cloud knows it, too."""

    def __init__(self, frames: VehicleFrames, turn: Turn, size: tuple[int, int]) -> None:
        """`size`: width and height of the encoder's input."""
        self._frames = frames
        self._augmentation = turn.augmentation
        self._turn_seed = turn.seed
        self._size = size

    def draw(self, number: int) -> int | None:
        """How requests and the methods below name the draw of a pass; None: frames are seen as they are."""
        return None if self._augmentation is None else number

    def images(self, indices: Sequence[int], draw: int | None) -> NDArray[np.uint8]:
        """image_BHWC uint8 RGB."""
        image_BHWC = self._frames.images(indices)
        if draw is None:
            return image_BHWC
        return np.stack(
            [
                self._view(index, draw).image(image_HWC)
                for index, image_HWC in zip(indices, image_BHWC, strict=True)
            ]
        )

    def label(self, index: int, draw: int | None) -> NDArray[np.uint8]:
        """label_HW uint8."""
        label_HW = self._frames.label(index)
        return label_HW if draw is None else self._view(index, draw).label(label_HW)

    def map(self, index: int, draw: int | None, map_yx: NDArray[np.float32]) -> NDArray[np.float32]:
        """A map over a frame, float32 (y, x), as one over what is seen of it."""
        return map_yx if draw is None else self._view(index, draw).map(map_yx)

    def _view(self, index: int, draw: int) -> View:
        assert self._augmentation is not None, "without augmentation there are no draws"
        return draw_view(self._augmentation, self._size, view_seed(self._turn_seed, draw, index))
