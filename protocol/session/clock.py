"""Time as a dependency: what decides by time, or waits, is given a clock."""

from __future__ import annotations

import queue
import time
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Clock(Protocol):
    """Tells the time and waits."""

    def now(self) -> float:
        """Seconds since some moment; never goes back."""

    def take(self, inbox: queue.Queue[Item], timeout_s: float) -> Item:
        """The next item of `inbox`, waited for.

        Raises:
            queue.Empty: none has come within `timeout_s`.
        """


class RealClock:
    """The machine's time."""

    def now(self) -> float:
        return time.monotonic()

    def take(self, inbox: queue.Queue[Item], timeout_s: float) -> Item:
        return inbox.get(timeout=max(0.0, timeout_s))


REAL_CLOCK = RealClock()
