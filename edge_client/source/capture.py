"""Pictures from OpenCV: opened in whatever way works here, upright, of the size that was asked for.

Shapes: H height, W width.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.frame import resize_image
from edge_client.source.pipelines import Way, ways_to_open
from edge_client.source.settings import SourceConfig
from protocol.errors import BlackfleetError

log = logging.getLogger(__name__)

_UNKNOWN_RATE_HZ = 25.0
"""Of a file that doesn't say its own."""

_ERRORS_ALONE = 2
"""OpenCV's level of the log."""

_FLIP: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "none": lambda image_HWC: image_HWC,
    "horizontal": lambda image_HWC: image_HWC[:, ::-1],
    "vertical": lambda image_HWC: image_HWC[::-1],
    "rotate-90": lambda image_HWC: np.rot90(image_HWC, -1),
    "rotate-180": lambda image_HWC: image_HWC[::-1, ::-1],
    "rotate-270": lambda image_HWC: np.rot90(image_HWC),
}


class CaptureError(BlackfleetError):
    """A camera, stream or file that can't be opened, or gives no more frames; it may come back."""


class Capture(Protocol):
    """What frames are read from, by one thread."""

    def read(self) -> NDArray[np.uint8] | None:
        """The next picture, uint8 BGR [H, W, 3]; None: there are no more."""

    def close(self) -> None:
        """Let go of it."""


class OpenCVCapture:
    """A source that OpenCV has opened.

    Attributes:
        way: by what.
        rate_hz: frames a second, as far as the source says.
    """

    def __init__(self, config: SourceConfig) -> None:
        """Open it.

        Raises:
            CaptureError: it can't be opened now.
            SettingError: this OpenCV never can.
        """
        self._config = config
        for way in ways_to_open(config):
            opened = _open(way)
            if opened is not None:
                self.way, self._capture = way, opened
                break
        else:
            raise CaptureError("it can't be opened")
        rate_hz = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.rate_hz = rate_hz if 0 < rate_hz < 1000 else _UNKNOWN_RATE_HZ

    def read(self) -> NDArray[np.uint8] | None:
        """See `Capture.read`."""
        try:
            is_there, image_HWC = self._capture.read()
        except cv2.error:
            return None
        if not is_there:
            return None
        upright_HWC = np.asarray(image_HWC, np.uint8)
        if not self.way.turns:
            upright_HWC = _FLIP[self._config.flip](upright_HWC)
        if self._config.size is not None:
            upright_HWC = resize_image(np.ascontiguousarray(upright_HWC), *self._config.size)
        return upright_HWC

    def close(self) -> None:
        """See `Capture.close`."""
        self._capture.release()


class PacedVideo:
    """A recorded drive, played as a camera would give it."""

    def __init__(self, config: SourceConfig) -> None:
        """Open it; raises as `OpenCVCapture`."""
        self._config = config
        self._capture = OpenCVCapture(config)
        self._interval_s = 1 / (config.rate_hz or self._capture.rate_hz)
        self._due_s = time.monotonic()
        self._is_first = True

    def read(self) -> NDArray[np.uint8] | None:
        """See `Capture.read`."""
        image_HWC = self._capture.read()
        if image_HWC is None and self._config.loop and not self._is_first:
            self._capture.close()
            self._capture = OpenCVCapture(self._config)
            image_HWC = self._capture.read()
        self._is_first = False
        wait_s = self._due_s - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        self._due_s = max(self._due_s, time.monotonic() - self._interval_s) + self._interval_s
        return image_HWC

    def close(self) -> None:
        """See `Capture.close`."""
        self._capture.close()


def _open(way: Way) -> cv2.VideoCapture | None:
    # What they say of a camera that is away, again and again, is said here once, without its URL.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    # OpenCV 4 has it at the top, OpenCV 5 in a module of its own.
    set_log_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel
    set_log_level(_ERRORS_ALONE)
    try:
        capture = cv2.VideoCapture(way.what, way.api, list(way.parameters))
    except cv2.error as error:
        log.debug("%s: %s", way.name, error)
        return None
    if capture.isOpened():
        return capture
    capture.release()
    log.debug("%s can't open it", way.name)
    return None
