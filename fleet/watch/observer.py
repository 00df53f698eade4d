"""A fleet seen from its broker: what the cloud tells and who is there, as the log of a run.

The observer only listens. What it hears it writes into a folder of its own, from which the page reads it as
it reads a run's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cloud_server.storage.recorders import LOG_NAME, append_event
from fleet.watch.story import Story
from protocol.errors import WireError
from protocol.messages import Happened, Past, Status
from protocol.session.intake import Received
from protocol.session.observing import ObserverLink
from protocol.session.topics import CLOUD_ID, EVENTS, topic

log = logging.getLogger(__name__)

_POLL_S = 0.25
_PATIENCE_S = 3.0
_AWAY_S = 2.0
"""A broker that is back within this was not away."""


class Observer:
    """Listens in a thread of its own while its context is open."""

    def __init__(
        self,
        link: ObserverLink,
        folder: Path,
        *,
        said: Callable[[str], None],
        silence_s: float = 25.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`said` is told what is being waited for, where it does not come at once; after `silence_s` also
        what a cloud may lack that is there and tells nothing."""
        self._link = link
        self._folder = folder
        self._said = said
        self._silence_s = silence_s
        self._clock = clock
        self._story = Story()
        self._is_told = False
        """Whether the present cloud tells what happens; else statuses say who is there."""
        self._is_over = False
        """Whether the latest run has been told to be complete."""
        self._cloud_session: str | None = None
        self._cloud_since = 0.0
        self._present: dict[str, bool] = {}
        self._waits_for: str | None = None
        self._waits_since = 0.0
        self._is_said = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)

    def __enter__(self) -> Observer:
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def heard_of(self) -> int:
        """How many of the fleet have been heard, the cloud included."""
        return len(self._present) + (self._cloud_session is not None)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                received = self._link.receive(_POLL_S)
                if isinstance(received, Received):
                    self.hear(received)
                self.look()
        except OSError as error:
            self._said(f"what is heard can't be kept any longer: {error}; make room and watch again")

    def hear(self, received: Received) -> None:
        """Take in one message."""
        message = received.message
        if isinstance(message, Status) and message.vehicle == CLOUD_ID:
            self._hear_cloud(message)
        elif isinstance(message, Status):
            self._hear_vehicle(message)
        elif isinstance(message, Happened | Past) and message.vehicle == CLOUD_ID:
            try:
                lines = self._story.take(message)
            except WireError as error:
                log.debug("an event of the cloud is malformed: %s", error)
                return
            if lines:
                self._is_told = True
                self._is_over = any('"event": "result"' in line for line in lines) or self._is_over
                with (self._folder / LOG_NAME).open("a", encoding="utf-8") as file:
                    file.writelines(f"{line}\n" for line in lines)

    def _hear_cloud(self, status: Status) -> None:
        if status.online and status.session != self._cloud_session:
            self._cloud_session, self._cloud_since, self._is_over = status.session, self._clock(), False
        elif not status.online and status.session == self._cloud_session:
            self._cloud_session, self._is_told = None, False

    def _hear_vehicle(self, status: Status) -> None:
        was_there = self._present.get(status.vehicle)
        if status.online != was_there and (status.online or was_there is not None):
            self._present[status.vehicle] = status.online
            if not self._is_told:
                self._note("present", {"vehicle": status.vehicle, "online": status.online})

    def look(self) -> None:
        """Find out what is being waited for, and say so where that is news."""
        waits_for, now = self._missing(), self._clock()
        if waits_for != self._waits_for:
            self._waits_for, self._waits_since, self._is_said = waits_for, now, False
            self._note("waiting", {"for": waits_for})
        if waits_for and not self._is_said and now - self._waits_since > _PATIENCE_S:
            self._is_said = True
            self._said(f"waiting for {waits_for}")

    def _missing(self) -> str:
        if self._link.transport.seconds_disconnected() > _AWAY_S:
            return "the broker, which is away"
        if self._is_over:
            return ""
        if self._cloud_session is None:
            return f"the cloud of fleet {self._link.fleet!r}, which is not there"
        if self._is_told:
            return ""
        if self._clock() - self._cloud_since < self._silence_s:
            return "the cloud to tell what has happened so far"
        name = topic(EVENTS, self._link.fleet, CLOUD_ID)
        return f"the cloud, which tells nothing on {name} (public_events, or the broker's access list)"

    def _note(self, name: str, values: Mapping[str, Any]) -> None:
        append_event(self._folder, name, values)
