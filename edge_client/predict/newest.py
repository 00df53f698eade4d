"""The newest frame of a camera, for whoever makes class maps of what it sees now.

Shapes: H height, W width.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_POLL_S = 0.2


class Taken(NamedTuple):
    """A frame, and when it came."""

    image_HWC: NDArray[np.uint8]
    """BGR [H, W, 3]."""
    taken_s: float
    """By the monotonic clock."""
    moment_s: float
    """Since 1970."""


class NewestFrame:
    """Holds one frame at a time, from one thread to another.

    Attributes:
        dropped: frames that a newer one has replaced before their turn came.
    """

    def __init__(self, alive: Callable[[], None] = lambda: None) -> None:
        """`alive` is called whenever whoever takes frames comes by here."""
        self._condition = threading.Condition()
        self._newest: Taken | None = None
        self._is_over = False
        self._alive = alive
        self.dropped = 0

    def offer(self, image_HWC: NDArray[np.uint8]) -> None:
        """A picture has come, uint8 BGR [H, W, 3]; it is taken unless a newer one comes before."""
        with self._condition:
            self.dropped += self._newest is not None
            self._newest = Taken(image_HWC, time.monotonic(), time.time())
            self._condition.notify()

    def end(self) -> None:
        """Whoever waits for a frame is told that it is over."""
        with self._condition:
            self._is_over = True
            self._condition.notify()

    @property
    def is_over(self) -> bool:
        """Whether that was said."""
        return self._is_over

    def rest(self, seconds: float) -> None:
        """Wait for so long, or until it is over."""
        deadline = time.monotonic() + seconds
        with self._condition:
            while not self._is_over and (left_s := deadline - time.monotonic()) > 0:
                self._alive()
                self._condition.wait(min(left_s, _POLL_S))

    def take(self) -> Taken | None:
        """Wait for a frame; None: it is over."""
        with self._condition:
            self._alive()
            while self._newest is None:
                self._alive()
                if self._is_over:
                    return None
                self._condition.wait(_POLL_S)
            taken, self._newest = self._newest, None
            return None if self._is_over else taken
