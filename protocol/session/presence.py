"""That a sender is there and at work: its retained status, and the thread that repeats it.

The loop that works stamps its presence; the thread beats for those only whose stamp is fresh. So a loop that
is stuck falls silent, and whoever waits for it can tell.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from protocol import messages
from protocol.session.clock import REAL_CLOCK, Clock

log = logging.getLogger(__name__)

DEFAULT_STEP_S = 120.0
"""Far above what a batch takes on the slowest machine, or a checkpoint on the slowest disk."""


class Presence:
    """One sender's retained status: announced on every (re)connect, on each beat and at the end."""

    def __init__(
        self,
        announce: Callable[[messages.Status], int],
        vehicle: str,
        session: str,
        *,
        step_s: float = DEFAULT_STEP_S,
        stamped: Callable[[], None] | None = None,
        health: Callable[[], messages.Health | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`step_s`: the longest that its loop may work without a stamp and still counts as alive; `stamped`
        is called with each stamp; `health` is what the status tells of the machine."""
        self._step_s = step_s
        self._clock = clock
        self._stamped = stamped
        self._health = health
        self._stamped_at = clock()
        self._is_stuck = False
        self._announce = announce
        self._vehicle = vehicle
        self._session = session
        self._beat = 0
        self._lock = threading.Lock()
        self.bytes_sent = 0
        """PUBLISH bytes of all statuses so far."""

    def announce(self, online: bool = True) -> None:
        """Publish the status now; from the first time on, `beat` repeats it."""
        with self._lock:
            status = messages.Status(
                vehicle=self._vehicle,
                session=self._session,
                online=online,
                beat=self._beat,
                health=None if self._health is None else self._health(),
            )
            self._beat += 1
            self.bytes_sent += self._announce(status)

    def stamp(self) -> None:
        """The loop that works comes by here: after each batch, each wait, each message."""
        self._stamped_at = self._clock()
        if self._stamped is not None:
            self._stamped()

    def beat(self) -> None:
        """Say once more that the sender is there, if it has said so before and its loop works."""
        still_s = self._clock() - self._stamped_at
        was_stuck, self._is_stuck = self._is_stuck, still_s > self._step_s
        if self._is_stuck and not was_stuck:
            log.warning(
                "%s has come no further for %.0f s (limit %g s): it no longer says that it is alive",
                self._vehicle,
                still_s,
                self._step_s,
            )
        elif was_stuck and not self._is_stuck:
            log.warning("%s has come on again", self._vehicle)
        if self.bytes_sent and not self._is_stuck:
            self.announce()


def heartbeat(
    presences: Sequence[Presence], interval_s: float, clock: Clock = REAL_CLOCK
) -> AbstractContextManager[None]:
    """In the body, beat for every presence of a process, however busy their owners are with one step."""

    def beat() -> None:
        for presence in presences:
            presence.beat()

    return clock.every(interval_s, beat, "heartbeat")
