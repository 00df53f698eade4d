"""Time as a dependency: what decides by time, waits, or acts now and then, is given a clock."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")


class Running(Protocol):
    """A thread that was started."""

    def join(self) -> None:
        """Wait until it has ended."""


class Clock(Protocol):
    """Tells the time and waits."""

    def now(self) -> float:
        """Seconds since some moment; never goes back."""

    def take(self, inbox: queue.Queue[Item], timeout_s: float) -> Item:
        """The next item of `inbox`, waited for.

        Raises:
            queue.Empty: none has come within `timeout_s`.
        """

    def put(self, inbox: queue.Queue[Item], item: Item) -> None:
        """Put an item where somebody may wait for it in `take`.

        Raises:
            queue.Full: there is no room.
        """

    def notify(self, inbox: queue.Queue[Any]) -> None:
        """Something was put into `inbox` otherwise."""

    def pause(self, condition: threading.Condition, timeout_s: float) -> None:
        """Wait until `condition`, which is held, is notified, or for so long; without a notice, too."""

    def catch_up(self) -> None:
        """Wait until the time has passed that what the caller has computed takes, where that is simulated."""

    def every(self, interval_s: float, action: Callable[[], None], name: str) -> AbstractContextManager[None]:
        """Call `action` again and again while the context is open."""

    def start(self, target: Callable[[], None], name: str) -> Running:
        """Start a thread that waits by this clock."""

    def participant(self, name: str) -> AbstractContextManager[None]:
        """In the body, the calling thread, which was not started by the clock, waits by it."""

    def working(self, name: str) -> AbstractContextManager[None]:
        """What the calling thread computes in the body is this vehicle's, or the cloud's."""


class RealClock:
    """The machine's time."""

    def now(self) -> float:
        return time.monotonic()

    def take(self, inbox: queue.Queue[Item], timeout_s: float) -> Item:
        return inbox.get(timeout=max(0.0, timeout_s))

    def put(self, inbox: queue.Queue[Item], item: Item) -> None:
        inbox.put_nowait(item)

    def notify(self, inbox: queue.Queue[Any]) -> None:
        pass

    def pause(self, condition: threading.Condition, timeout_s: float) -> None:
        condition.wait(timeout_s)

    def catch_up(self) -> None:
        pass

    def every(self, interval_s: float, action: Callable[[], None], name: str) -> AbstractContextManager[None]:
        return _Ticking(interval_s, action, name)

    def start(self, target: Callable[[], None], name: str) -> Running:
        thread = threading.Thread(target=target, name=name)
        thread.start()
        return thread

    def participant(self, name: str) -> AbstractContextManager[None]:
        del name
        return contextlib.nullcontext()

    def working(self, name: str) -> AbstractContextManager[None]:
        del name
        return contextlib.nullcontext()


class _Ticking:
    """A thread that acts while the context is open."""

    def __init__(self, interval_s: float, action: Callable[[], None], name: str) -> None:
        self._interval_s = interval_s
        self._action = action
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._action()


REAL_CLOCK = RealClock()
