"""What comes again and again, and how often of late."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

_WINDOW_S = 10.0
_MOST = 5000
"""In the window; far above what a camera gives."""


class RecentRate:
    """Times a second in the last ten seconds; from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._since = clock()
        self._times: deque[float] = deque(maxlen=_MOST)

    def note(self) -> None:
        """It has come once more."""
        with self._lock:
            self._times.append(self._clock())

    @property
    def hz(self) -> float:
        """Since it began, as long as that is less than ten seconds ago."""
        with self._lock:
            now = self._clock()
            while self._times and self._times[0] <= now - _WINDOW_S:
                self._times.popleft()
            return len(self._times) / max(min(_WINDOW_S, now - self._since), 1.0)


class Seeing(NamedTuple):
    """How a vehicle's camera and its class maps come on; None: there is none, or nothing to say of it."""

    camera_hz: float | None = None
    """Frames a second that the camera gives."""
    camera_dropped: int | None = None
    """Frames that nobody has looked at, because newer ones were there."""
    served_hz: float | None = None
    """Class maps a second."""
    served_ms: int | None = None
    """How old a frame is when its class map is there, of 95 in 100 at most."""
