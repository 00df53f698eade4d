"""The one frame type of every data set, references to frames on disk, and what a source of frames offers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.labels import LabelSpace
from datasets.natural import NaturalKey, natural_key
from protocol.errors import Mistake


class DatasetError(Mistake):
    """A data set that is missing, incomplete or malformed; the message names the files."""


def frame_key(city: str, sequence: str, frame_id: str) -> str:
    """Return `<city>_<sequence>_<frame_id>`, or `<sequence>_<frame_id>` where the sequence is the city."""
    return f"{sequence}_{frame_id}" if city == sequence else f"{city}_{sequence}_{frame_id}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """One camera picture and its label."""

    image_HWC: NDArray[np.uint8]
    """RGB."""
    label_HW: NDArray[np.uint8]
    """trainIds, 255 = void: everywhere, where there is no label."""
    instance_HW: NDArray[np.int32] | None = None
    """Cityscapes instance ids: `label_id`, or `label_id * 1000 + n` for single objects; None if unknown."""
    city: str
    sequence: str
    frame_id: str

    @property
    def key(self) -> str:
        """The frame's name, unique in its data set."""
        return frame_key(self.city, self.sequence, self.frame_id)


@dataclass(frozen=True, slots=True, order=True)
class FrameRef:
    """Where one frame lies; sorted by key in natural order, that is by city, sequence and time."""

    order: NaturalKey = field(init=False, repr=False)
    key: str
    """Unique in the data set: Cityscapes `<city>_<seq6>_<frame6>`, CamVid the file name's stem."""
    city: str
    sequence: str
    frame_id: str
    image_path: Path = field(compare=False)
    label_path: Path | None = field(compare=False)
    """None: it has no label."""
    instance_path: Path | None = field(compare=False, default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", natural_key(self.key))


class FrameSource(Protocol):
    """A data set opened for reading."""

    @property
    def label_space(self) -> LabelSpace:
        """The classes that `Frame.label_HW` speaks of."""

    @property
    def refs(self) -> tuple[FrameRef, ...]:
        """Every frame, sorted by key."""

    def load(self, ref: FrameRef) -> Frame:
        """Read one frame.

        Raises:
            DatasetError: a file is missing, unreadable, of the wrong size, or holds unknown ids.
        """

    def load_image(self, ref: FrameRef) -> NDArray[np.uint8]:
        """Read only the picture, uint8 RGB [H, W, 3].

        Raises:
            DatasetError: the file is missing or unreadable.
        """

    def load_label(self, ref: FrameRef) -> NDArray[np.uint8]:
        """Read only the label, uint8 trainIds [H, W].

        Raises:
            DatasetError: the file is missing, unreadable, or holds unknown ids.
        """


def resize_frame(frame: Frame, width: int, height: int) -> Frame:
    """Return the frame at another size, in pixels; aspect ratio is not kept.

    The picture is averaged over areas when it shrinks and interpolated linearly when it grows; labels and
    instances take the nearest pixel (by pixel centres, so that they stay aligned with the picture).

    Raises:
        ValueError: a size is not positive.
    """
    if width < 1 or height < 1:
        raise ValueError(f"frame size must be at least 1x1, got {width}x{height}")
    old_height, old_width = frame.label_HW.shape
    if (width, height) == (old_width, old_height):
        return frame
    size = (width, height)
    label_HW = cv2.resize(frame.label_HW, size, interpolation=cv2.INTER_NEAREST_EXACT)
    instance_HW = None
    if frame.instance_HW is not None:
        resized_HW = cv2.resize(frame.instance_HW, size, interpolation=cv2.INTER_NEAREST_EXACT)
        instance_HW = resized_HW.astype(np.int32, copy=False)
    return replace(
        frame,
        image_HWC=resize_image(frame.image_HWC, width, height),
        label_HW=label_HW.astype(np.uint8, copy=False),
        instance_HW=instance_HW,
    )


def resize_image(image_HWC: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Return a picture at another size as `resize_frame` does, uint8 RGB [height, width, 3]."""
    old_height, old_width = image_HWC.shape[:2]
    if (width, height) == (old_width, old_height):
        return image_HWC
    shrinks = width * height < old_width * old_height
    resized_HWC = cv2.resize(
        image_HWC, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    return np.asarray(resized_HWC, np.uint8)
