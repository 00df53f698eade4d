"""A camera that may go away: opened again and again, ever more rarely, until it is back.

Shapes: H height, W width.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from edge_client.recent import RecentRate
from edge_client.source.capture import Capture, CaptureError
from edge_client.source.grabber import Grabber

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0


class LiveFrames:
    """The newest pictures of a camera, as often as somebody asks.

    Attributes:
        reconnects: how often the camera was opened after the first time.
        failures: how often that, or going on with it, has failed.
        rate: of the pictures that it gives, also of those that nobody takes.
    """

    def __init__(
        self,
        open_capture: Callable[[], Capture],
        *,
        shown: str,
        timeout_s: float,
        stop: threading.Event,
        comes_back: bool = True,
    ) -> None:
        """`shown` is the camera's name in the log; one that doesn't come back ends with the first failure."""
        self._open = open_capture
        self._shown = shown
        self._timeout_s = timeout_s
        self._stop = stop
        self._comes_back = comes_back
        self._grabber: Grabber | None = None
        self._dropped_before = 0
        self.reconnects = -1
        self.failures = 0
        self.rate = RecentRate()

    @property
    def dropped(self) -> int:
        """Pictures that were never looked at, because newer ones were there."""
        return self._dropped_before + (self._grabber.dropped if self._grabber is not None else 0)

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint8], float]]:
        """Pictures, uint8 BGR [H, W, 3], and when they came, in seconds of the monotonic clock.

        Raises:
            Mistake: the camera can never be opened here.
        """
        pause_s = FIRST_PAUSE_S
        while not self._stop.is_set():
            try:
                for image_HWC in self._one_opening():
                    if pause_s != FIRST_PAUSE_S or self.reconnects < 0:
                        self.reconnects += 1
                        log.info("%s gives frames", self._shown)
                    pause_s = FIRST_PAUSE_S
                    yield image_HWC, time.monotonic()
            except CaptureError as error:
                if not self._comes_back:
                    log.info("%s has ended: %s", self._shown, error)
                    return
                self.failures += 1
                log.warning("%s: %s; trying again in %g s", self._shown, error, pause_s)
                self._stop.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _one_opening(self) -> Iterator[NDArray[np.uint8]]:
        grabber = self._grabber = Grabber(self._open, self._timeout_s, self.rate)
        try:
            while (image_HWC := grabber.newest(self._stop)) is not None:
                yield image_HWC
        finally:
            grabber.close()
            self._dropped_before += grabber.dropped
            self._grabber = None
            # A driver that doesn't return still holds the camera: opening it again would fail, or hang.
            while grabber.is_running and not self._stop.wait(self._timeout_s):
                log.warning("%s: its driver does not return; waiting for it", self._shown)
