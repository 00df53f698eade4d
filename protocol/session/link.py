"""Typed messages over a transport: what a vehicle and the cloud each see of the network.

A link encodes, splits what is too large for one publish, sends it as the network takes it, reassembles,
decodes and checks the sender. Nothing is sent that its receiver has said to be too large for it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection

from protocol import messages
from protocol.seldom import is_logged
from protocol.session import topics
from protocol.session.clock import REAL_CLOCK, Clock
from protocol.session.end import (
    DEFAULT_PAYLOAD_LIMIT_BYTES,
    MAX_MESSAGE_BYTES,
    SMALLEST_PAYLOAD_LIMIT_BYTES,
    Connect,
    End,
    TooManyWaiting,
    encode_status,
)
from protocol.session.intake import Intake, Malformed, Received
from protocol.session.outgoing import Sending
from protocol.session.parts import MessageTooLarge
from protocol.session.seal import CloudSeal, VehicleSeal
from protocol.session.transport import Transport

__all__ = [
    "DEFAULT_PAYLOAD_LIMIT_BYTES",
    "MAX_MESSAGE_BYTES",
    "SMALLEST_PAYLOAD_LIMIT_BYTES",
    "CloudLink",
    "Connect",
    "Malformed",
    "MessageTooLarge",
    "Received",
    "Sending",
    "TooManyWaiting",
    "VehicleLink",
    "encode_status",
]

log = logging.getLogger(__name__)

MOST_WAITING_BYTES = 8 * 1024 * 1024
"""Of a vehicle's requests that have not set out; beyond it makes no new one, unless none waits."""
MOST_WAITING = 64
"""Messages to one vehicle that have not set out; its requests under way are four."""
_MOST_WAITING_EVENTS = 8
_MOST_WAITING_WITH_REJECT = 16
"""With more no rejection is sent: what others say in a vehicle's name must not crowd out its answers."""
_MOST_SESSIONS = 8
"""Of one vehicle, remembered at a time."""
_STALL_S = 5.0


class VehicleLink(End):
    """A vehicle's end: sends up, receives down messages and the cloud's status."""

    def __init__(
        self,
        transport: Transport,
        fleet: str,
        vehicle: str,
        *,
        payload_limit_bytes: int = DEFAULT_PAYLOAD_LIMIT_BYTES,
        limit_bytes: int = MAX_MESSAGE_BYTES,
        stall_s: float = _STALL_S,
        clock: Clock = REAL_CLOCK,
        seal: VehicleSeal | None = None,
    ) -> None:
        super().__init__(
            transport,
            fleet,
            payload_limit_bytes=payload_limit_bytes,
            limit_bytes=limit_bytes,
            stall_s=stall_s,
            clock=clock,
            seal=seal,
        )
        self._own_seal = seal
        self.vehicle = topics.check_vehicle_id(vehicle)
        self._cloud_limit_bytes = MAX_MESSAGE_BYTES
        self._up = topics.topic(topics.UP, self.fleet, self.vehicle)

    def _note_limit(self, status: messages.Status) -> None:
        self._cloud_limit_bytes = status.limit_bytes

    def _limit_of(self, receiver: str) -> int:
        return self._cloud_limit_bytes

    def on_arrival(self, wake: Callable[[], None]) -> None:
        """Have `wake` called, by the network thread, when there is something to receive; before `open`."""
        self._intake.on_arrival = wake

    def open(self, timeout_s: float, stop: threading.Event | None = None) -> None:
        """Connect and subscribe.

        Raises:
            BrokerUnreachable: no connection within `timeout_s`, or before `stop` was set.
        """
        down = topics.topic(topics.DOWN, self.fleet, self.vehicle)
        self.transport.subscribe(down, self._intake.deliver)
        cloud = topics.topic(topics.STATUS, self.fleet, topics.CLOUD_ID)
        self.transport.subscribe(cloud, self._intake.deliver)
        self.transport.connect(timeout_s, stop)

    def send(self, message: messages.Up) -> Sending:
        """Put one message to the cloud on its way.

        Raises:
            MessageTooLarge: the cloud could not take it; nothing is sent.
        """
        return self._send(topics.UP, self.vehicle, topics.CLOUD_ID, message)

    def hear_classes(self) -> Intake:
        """Class maps of what this vehicle sees arrive here, for a thread of its own."""
        return self._aside(topics.topic(topics.CLASSES, self.fleet, self.vehicle))

    def show(self, message: messages.Sight) -> Sending:
        """Put what the vehicle sees now on its way; what it saw before and still waits is not sent any more.

        Raises:
            MessageTooLarge: the cloud could not take it; nothing is sent.
        """
        self._outgoing.forget(topics.topic(topics.SEEN, self.fleet, self.vehicle))
        return self._send(topics.SEEN, self.vehicle, topics.CLOUD_ID, message)

    @property
    def has_room(self) -> bool:
        """Whether the next request may be made: what waits is little, or nothing."""
        return self._outgoing.waiting_bytes(self._up) <= MOST_WAITING_BYTES

    @property
    def moved_at(self) -> float:
        """By the clock, when the latest part of a message arrived whose other parts are awaited."""
        return self._intake.moved_at

    def meet(self, cloud_session: str) -> None:
        """From now on the vehicle speaks to this process of the cloud, and hears it alone."""
        if self._own_seal is not None:
            self._own_seal.cloud_session = cloud_session

    def forget(self) -> None:
        """Send nothing more of what is on its way: it has lost its meaning."""
        self._outgoing.forget(self._up)


class CloudLink(End):
    """The cloud's end: receives all vehicles' messages and statuses, sends to one vehicle at a time."""

    def __init__(
        self,
        transport: Transport,
        fleet: str,
        *,
        vehicles: Collection[str] | None = None,
        payload_limit_bytes: int = DEFAULT_PAYLOAD_LIMIT_BYTES,
        limit_bytes: int = MAX_MESSAGE_BYTES,
        stall_s: float = _STALL_S,
        clock: Clock = REAL_CLOCK,
        seal: CloudSeal | None = None,
    ) -> None:
        """`vehicles` alone may send messages in parts, so that no stranger fills the memory; None: anyone."""
        self._vehicles = None if vehicles is None else frozenset(vehicles)
        self._listening = threading.Lock()
        self._listens_to: frozenset[str] = frozenset()
        """Filters."""
        self._unheard: frozenset[str] = frozenset()
        """Who was muted when they were made."""
        self._sessions: dict[str, str] = {}
        """By vehicle: its process that has been taken in."""
        self._limits: dict[str, dict[str, int]] = {}
        """By vehicle and session: the largest message that it takes, as it has announced."""
        self.undelivered = 0
        """Messages that were not sent because too many waited."""
        super().__init__(
            transport,
            fleet,
            payload_limit_bytes=payload_limit_bytes,
            limit_bytes=limit_bytes,
            stall_s=stall_s,
            clock=clock,
            seal=seal,
        )
        if seal is not None:
            seal.sessions = self._sessions

    def _may_send_parts(self, vehicle: str) -> bool:
        return self._vehicles is None or vehicle in self._vehicles

    def _note_limit(self, status: messages.Status) -> None:
        if not self._may_send_parts(status.vehicle):
            return
        known = self._limits.setdefault(status.vehicle, {})
        known.pop(status.session, None)
        known[status.session] = status.limit_bytes
        others = [session for session in known if session != self._sessions.get(status.vehicle)]
        for oldest in others[:-_MOST_SESSIONS]:
            del known[oldest]

    def _limit_of(self, receiver: str) -> int:
        session = self._sessions.get(receiver, "")
        return self._limits.get(receiver, {}).get(session, MAX_MESSAGE_BYTES)

    def open(self, timeout_s: float, stop: threading.Event | None = None) -> None:
        """Connect and subscribe to the fleet.

        Raises:
            BrokerUnreachable: no connection within `timeout_s`, or before `stop` was set.
        """
        self._intake.on_mute = self._listen
        self._listen()
        self.transport.connect(timeout_s, stop)

    def receive(self, timeout_s: float) -> Received | Malformed | None:
        if self._intake.mutes.muted() != self._unheard:
            self._listen()
        return super().receive(timeout_s)

    def _listen(self) -> None:
        """Subscribe to all but those who are muted: what they send must not fill the line from the broker."""
        with self._listening:
            muted = self._intake.mutes.muted()
            wanted = self._filters(muted)
            for topic_filter in self._listens_to - wanted:
                self.transport.unsubscribe(topic_filter)
            for topic_filter in sorted(wanted - self._listens_to):
                self.transport.subscribe(topic_filter, self._intake.deliver)
            self._listens_to, self._unheard = wanted, muted

    def _filters(self, muted: frozenset[str]) -> frozenset[str]:
        if not muted or self._vehicles is None:
            return frozenset(
                topics.topic_filter(channel, self.fleet) for channel in (topics.UP, topics.STATUS)
            )
        heard = {topics.CLOUD_ID, *self._vehicles} - muted
        return frozenset(
            topics.topic(channel, self.fleet, vehicle)
            for vehicle in heard
            for channel in (topics.UP, topics.STATUS)
        )

    def send(self, vehicle: str, message: messages.Down) -> Sending:
        """Put one message to a vehicle on its way; the others' don't wait for it.

        Raises:
            MessageTooLarge: the vehicle could not take it; nothing is sent.
            TooManyWaiting: it takes in less than it asks for; nothing is sent.
        """
        waiting = self._outgoing.waiting(topics.topic(topics.DOWN, self.fleet, vehicle))
        is_reject = isinstance(message, messages.Reject)
        if waiting >= (_MOST_WAITING_WITH_REJECT if is_reject else MOST_WAITING):
            self.undelivered += 1
            if is_logged(self.undelivered, first=1):
                log.warning("%d messages not sent so far: too many wait", self.undelivered)
            raise TooManyWaiting(
                f"{waiting} messages to {vehicle!r} wait already; {type(message).__name__} not sent"
            )
        return self._send(topics.DOWN, vehicle, vehicle, message)

    def see(self) -> Intake:
        """What vehicles see arrives here, for a thread of its own."""
        return self._aside(topics.topic_filter(topics.SEEN, self.fleet))

    def answer_seen(self, vehicle: str, message: messages.Classes) -> Sending:
        """Put what the cloud makes of it on its way; an earlier answer that still waits is not sent any more.

        Raises:
            MessageTooLarge: the vehicle could not take it; nothing is sent.
        """
        self._outgoing.forget(topics.topic(topics.CLASSES, self.fleet, vehicle))
        return self._send(topics.CLASSES, vehicle, vehicle, message)

    @property
    def tell_limit_bytes(self) -> int:
        """The largest payload that `tell` takes."""
        topic = topics.topic(topics.EVENTS, self.fleet, topics.CLOUD_ID)
        return self._publish_limit_bytes(topic, topics.EVENTS.qos)

    def tell(self, message: messages.Events) -> bool:
        """Say what has happened to whoever may look on; False where it would be in the way, or is too large.

        It takes its turn with all else that is sent, and nobody waits for it.
        """
        sending = self._sending(topics.EVENTS, topics.CLOUD_ID, message)
        waiting = self._outgoing.waiting(sending.topic)
        if not (self.transport.connected and sending.frames.is_whole and waiting < _MOST_WAITING_EVENTS):
            return False
        self._outgoing.send(sending)
        return True

    def refused(self, vehicle: str) -> None:
        """Note that a message of this vehicle was refused; if very many are, it is not heard for a while."""
        self._intake.refused(vehicle)

    def meet(self, vehicle: str, session: str) -> None:
        """This process is the vehicle from now on: what is on its way to it has lost its meaning."""
        self._sessions[vehicle] = session
        self._outgoing.forget(topics.topic(topics.DOWN, self.fleet, vehicle))
