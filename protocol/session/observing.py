"""An observer's end: it hears who is there and what the cloud tells, and has no way to say anything."""

from __future__ import annotations

import threading

from protocol.session import topics
from protocol.session.clock import REAL_CLOCK
from protocol.session.intake import Intake, Malformed, Received
from protocol.session.transport import Delivery, Transport

_LARGEST_BYTES = 1024 * 1024
OBSERVER_NAME = "observer"
"""In its client id; its user name at the broker is whatever the broker's operator calls it."""


class ObserverLink:
    """Receives statuses and events of one fleet; nothing is ever published, no will is left."""

    def __init__(self, transport: Transport, fleet: str) -> None:
        """`transport` is to be made without a will."""
        self.transport = transport
        self.fleet = topics.check_id(fleet, "fleet id")
        self.fleets: set[str] = set()
        """Those of which there is a cloud's word, once `listen_for_fleets` was called."""
        self._intake = Intake(
            clock=REAL_CLOCK,
            limit_bytes=_LARGEST_BYTES,
            may_send_parts=lambda _: False,
            say=lambda *_: None,
            heed=lambda *_: None,
        )

    def open(self, timeout_s: float, stop: threading.Event | None = None) -> None:
        """Connect and subscribe; a broker keeps nothing for an observer who is away.

        Raises:
            BrokerUnreachable: no connection within `timeout_s`, or it is refused.
        """
        for topic in (
            topics.topic_filter(topics.STATUS, self.fleet),
            topics.topic(topics.EVENTS, self.fleet, topics.CLOUD_ID),
        ):
            self.transport.subscribe(topic, self._intake.deliver, qos=0)
        self.transport.connect(timeout_s, stop)

    def listen_for_fleets(self) -> None:
        """Hear of other fleets, too, in the same session: where a user's name is its only one, a second one
        would end this."""

        def note(delivery: Delivery) -> None:
            if delivery.payload:
                self.fleets.add(topics.parse(delivery.topic).fleet)

        self.transport.subscribe(topics.clouds_filter(), note, qos=0)

    def receive(self, timeout_s: float) -> Received | Malformed | None:
        """The next message, or None when `timeout_s` has passed without one."""
        return self._intake.receive(timeout_s)
