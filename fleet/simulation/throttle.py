"""Real time with simulated links and devices: packets are held back, and who has computed waits for the rest.

A device that is faster than this machine can't be shown so: then the run takes longer than its virtual time.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from fleet.simulation.spent import Spent
from fleet.simulation.virtual_clock import Event, EventQueue
from protocol.charging import charged
from protocol.session.clock import Item, RealClock

log = logging.getLogger(__name__)

_FOREVER_S = 3600.0


class ThrottledClock(RealClock):
    """The machine's time, from the moment on in which all participants have come."""

    def __init__(self, names: Sequence[str], spent: Spent, *, start_s: float = 0.0) -> None:
        """See `VirtualClock`."""
        self._start_s = start_s
        self._spent = spent
        self._expected = set(names)
        self._gate = threading.Condition()
        self._began: float | None = None
        self._events = EventQueue()
        self._planned = threading.Condition()
        self._own = threading.local()
        self._over = False
        threading.Thread(target=self._run, name="links", daemon=True).start()

    def now(self) -> float:
        return self._start_s + (0.0 if self._began is None else time.monotonic() - self._began)

    def at(self, time_s: float, action: Callable[[], None]) -> Event:
        """Plan an action, to be done by a thread that all of them share; it must not wait."""

        def act() -> None:
            action()

        event = Event(time_s, act)
        with self._planned:
            self._events.add(event)
            self._planned.notify()
        return event

    def take(self, inbox: queue.Queue[Item], timeout_s: float) -> Item:
        self.catch_up()
        try:
            return super().take(inbox, timeout_s)
        finally:
            self._own.since = self.now()

    def sleep(self, seconds: float) -> None:
        """Wait for so long."""
        time.sleep(max(0.0, seconds))

    def catch_up(self) -> None:
        computed_s: float = getattr(self._own, "computed_s", 0.0)
        if computed_s:
            self._own.computed_s = 0.0
            self.sleep(self._own.since + computed_s - self.now())
            self._own.since = self.now()

    @contextmanager
    def participant(self, name: str) -> Iterator[None]:
        self._come(name)
        yield

    @contextmanager
    def working(self, name: str) -> Iterator[None]:
        self._own.since, self._own.computed_s = self.now(), 0.0
        with charged(self._spent.charge(name, self._add)):
            yield
        self.catch_up()

    def close(self) -> None:
        """Let the thread of planned actions end."""
        with self._planned:
            self._over = True
            self._planned.notify()

    def _come(self, name: str) -> None:
        with self._gate:
            self._expected.discard(name)
            if not self._expected and self._began is None:
                self._began = time.monotonic()
                self._gate.notify_all()
            while self._began is None:
                self._gate.wait()

    def _add(self, seconds: float) -> None:
        self._own.computed_s += seconds

    def _run(self) -> None:
        while True:
            with self._planned:
                if self._over:
                    return
                due_s = self._events.next_time()
                wait_s = _FOREVER_S if due_s is None else due_s - self.now()
                if wait_s > 0:
                    self._planned.wait(wait_s)
                    continue
                event = self._events.pop()
            if event is not None:
                try:
                    event.action()
                except Exception:  # the packets of other vehicles go on
                    log.exception("a planned action failed")
