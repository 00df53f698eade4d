"""What a supervisor is told: that the loops of this process have begun, go on, and have ended.

systemd's protocol (sd_notify): a datagram to the socket that `NOTIFY_SOCKET` names; `WATCHDOG_USEC` says
within which time the next one is due. Nothing here has a thread of its own: the loops that work come by, and
one that is stuck is missed. https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)

_PINGS_IN_TIME = 4
"""So often the supervisor is told within the time in which it wants to be told once."""


class Watchdog:
    """Tells the supervisor `READY=1` once every loop of the process has come by, then `WATCHDOG=1` as long as
    all of them do, and `STOPPING=1` when the last has left. Without a supervisor it is silent."""

    def __init__(
        self, environment: Mapping[str, str] | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`environment` as the supervisor has set it; None = nobody asks."""
        environment = environment or {}
        self._address = environment.get("NOTIFY_SOCKET", "").replace("@", "\0", 1)
        self._interval_s = _asked_interval_s(environment)
        self._clock = clock
        self._lock = threading.Lock()
        self._loops: set[str] = set()
        self._missed: set[str] = set()
        """Those that have not come by since the supervisor was last told."""
        self._is_ready = False
        self._due = 0.0
        self._has_complained = False

    def watch(self, loop: str) -> Callable[[], None]:
        """What a loop of this name calls whenever it comes by; all are named before the first one runs."""
        self._loops.add(loop)
        self._missed.add(loop)
        return lambda: self._came_by(loop)

    def leave(self, loop: str) -> None:
        """This loop has ended; the others go on."""
        with self._lock:
            self._loops.discard(loop)
            self._missed.discard(loop)
            if not self._loops:
                self._tell("STOPPING=1")

    def _came_by(self, loop: str) -> None:
        if not self._address:
            return
        with self._lock:
            self._missed.discard(loop)
            now = self._clock()
            if self._missed or (self._is_ready and (self._interval_s is None or now < self._due)):
                return
            self._tell("WATCHDOG=1" if self._is_ready else "READY=1")
            self._is_ready = True
            self._missed = set(self._loops)
            self._due = now + (self._interval_s or 0.0)

    def _tell(self, state: str) -> None:
        """A datagram that can't be delivered is not worth a run: the next one follows."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto(state.encode(), self._address)
        except OSError as error:
            if not self._has_complained:
                self._has_complained = True
                log.warning("the supervisor can't be told %s: %s", state, error)


def _asked_interval_s(environment: Mapping[str, str]) -> float | None:
    """How often to tell it; None = this process is not asked to."""
    asked = environment.get("WATCHDOG_USEC", "")
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()) or not asked.isdecimal():
        return None
    return int(asked) / 1e6 / _PINGS_IN_TIME
