"""That a sender is there: its retained status, and the thread that repeats it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from protocol import messages


class Presence:
    """One sender's retained status: announced on every (re)connect, on each beat and at the end."""

    def __init__(self, announce: Callable[[messages.Status], int], vehicle: str, session: str) -> None:
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
                vehicle=self._vehicle, session=self._session, online=online, beat=self._beat
            )
            self._beat += 1
            self.bytes_sent += self._announce(status)

    def beat(self) -> None:
        """Say once more that the sender is there, if it has said so before."""
        if self.bytes_sent:
            self.announce()


class Heartbeat:
    """Beats for every presence of a process from one thread, however busy their owners are."""

    def __init__(self, presences: Sequence[Presence], interval_s: float) -> None:
        self._presences = presences
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            for presence in self._presences:
                presence.beat()
