"""One cloud for each fleet: who was there first stays.

A cloud asks before it announces itself, by a status that says `online: false`, which vehicles pass over. It
comes back after the status that the broker has kept, and makes a living cloud beat at once. A cloud that died
without a will leaves a status that never beats again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from cloud_server.errors import CloudError
from protocol.messages import Hello, Status
from protocol.session.link import CloudLink, Malformed, Received
from protocol.session.topics import CLOUD_ID, STATUS, topic

log = logging.getLogger(__name__)

_POLL_S = 0.1
_ASK_S = 1.0
"""Between questions; what a cloud had sent before it died arrives within this."""
_SHORTEST_WAIT_S = 2.0


class FleetClaim:
    """What one cloud knows of others of its fleet; used by the server's thread."""

    def __init__(
        self,
        link: CloudLink,
        session: str,
        *,
        heartbeat_s: float,
        announce: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`announce` says online once more."""
        self._link = link
        self._session = session
        self._wait_s = max(_SHORTEST_WAIT_S, 2 * heartbeat_s)
        self._announce = announce
        self._clock = clock
        self._heard_itself = False
        self._beats: dict[str, int] = {}
        """Of other clouds that say that they are online, by session."""
        self._first_seen = 0.0
        self._defended = 0.0

    def take(self, patience_s: float, check_stop: Callable[[], None]) -> list[Received]:
        """Return when the fleet is known to have no other cloud; gives what vehicles have said meanwhile.

        Raises:
            CloudError: it has one, or nothing that this cloud says comes back within `patience_s`.
            Stopped: by `check_stop`.
        """
        began, asked, is_warned = self._clock(), -_ASK_S, False
        held: list[Received] = []
        while True:
            check_stop()
            now = self._clock()
            if now - asked >= _ASK_S:
                asked = now
                self._ask()
            received = self._link.receive(_POLL_S)
            if (status := self._cloud_status(received)) is not None:
                self._look_at(status, leftovers_s=_ASK_S)
            elif isinstance(received, Received) and isinstance(received.message, (Hello, Status)):
                held.append(received)
            if self._heard_itself and (not self._beats or self._clock() - self._first_seen > self._wait_s):
                self._reset()
                return held
            if self._heard_itself or self._link.transport.seconds_disconnected() > 0:
                continue
            if self._clock() - began > patience_s:
                raise CloudError(self._unheard())
            if self._clock() - began > _SHORTEST_WAIT_S and not is_warned:
                is_warned = True
                log.warning("%s", self._unheard())

    def note(self, received: Received | Malformed) -> None:
        """Follow what is said in the cloud's name while this one is at work.

        Raises:
            CloudError: another one was there before.
        """
        status = self._cloud_status(received)
        if status is None:
            return
        if status.session == self._session:
            self._heard_itself = self._heard_itself or status.online
        elif not self._heard_itself or status.session in self._beats:
            self._look_at(status, leftovers_s=0.0)
        elif self._clock() - self._defended >= _ASK_S / 2:
            # Whoever asks shall know. Not more often: another cloud might answer in the same way.
            self._defended = self._clock()
            self._announce()

    def reconnected(self) -> None:
        """While this cloud was away, another one may have taken its place."""
        self._reset()

    def _reset(self) -> None:
        self._heard_itself, self._beats = False, {}

    def _ask(self) -> None:
        question = Status(vehicle=CLOUD_ID, session=self._session, online=False, beat=0)
        # Not retained: what the broker keeps is the word of the cloud that lives.
        self._link.transport.publish(
            topic(STATUS, self._link.fleet, CLOUD_ID), self._link.encode_status(question), qos=STATUS.qos
        )

    @staticmethod
    def _cloud_status(received: Received | Malformed | None) -> Status | None:
        if not isinstance(received, Received) or received.vehicle != CLOUD_ID:
            return None
        return received.message if isinstance(received.message, Status) else None

    def _look_at(self, status: Status, *, leftovers_s: float) -> None:
        session, now = status.session, self._clock()
        if session == self._session:
            self._heard_itself = True
        elif not status.online:
            self._beats.pop(session, None)
        elif session not in self._beats:
            self._beats[session] = status.beat
            self._first_seen = now
        elif status.beat > self._beats[session] and now - self._first_seen >= leftovers_s:
            raise CloudError(
                f"fleet {self._link.fleet!r} has a cloud already, which is alive; stop it, or give this run "
                f"a fleet name of its own"
            )

    def _unheard(self) -> str:
        name = topic(STATUS, self._link.fleet, CLOUD_ID)
        return (
            f"the broker takes what this cloud says on {name} and does not hand it on; "
            f"let this user write and read that topic"
        )
