"""Typed messages over a transport: what a vehicle and the cloud each see of the network.

A link encodes, splits what is too large for one publish, reassembles, decodes and checks the sender. The
network thread only enqueues; decoding happens in the thread that calls `receive`.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import msgspec

from protocol import messages
from protocol.errors import WireError
from protocol.session import parts, topics
from protocol.session.transport import Delivery, Transport, Will, publish_packet_bytes

log = logging.getLogger(__name__)

Connect = Callable[[str, Will, Callable[[], None]], Transport]
"""Makes a transport from (client id, last will, what to do after each connect)."""

DEFAULT_PAYLOAD_LIMIT_BYTES = 128 * 1024 - 256
"""Under the smallest hard packet limit of the cloud brokers, with room for the topic."""

SMALLEST_PAYLOAD_LIMIT_BYTES = 1024

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
MAX_UNFINISHED = 8
"""Messages of one sender that may have arrived in part; a vehicle has at most four requests under way."""
_INBOX_SIZE = 20_000

_DECODERS: dict[str, msgspec.msgpack.Decoder[messages.Up | messages.Down | messages.Status]] = {
    channel.name: msgspec.msgpack.Decoder(channel.message_type) for channel in topics.CHANNELS.values()
}
_ENCODER = msgspec.msgpack.Encoder()


@dataclass(frozen=True, kw_only=True, slots=True)
class Malformed:
    """A delivery that is no message of ours; `vehicle` is the topic's claim."""

    vehicle: str
    reason: str
    packet_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Received:
    """A decoded message and what it cost: all PUBLISH packets it came in."""

    vehicle: str
    message: messages.Up | messages.Down | messages.Status
    packet_bytes: int


@dataclass(kw_only=True)
class ByteCount:
    """PUBLISH bytes (header, topic and payload) by message type."""

    by_type: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return sum(self.by_type.values())


class _Link:
    """What both ends share: an inbox, part-wise sending and receiving."""

    def __init__(self, transport: Transport, fleet: str, payload_limit_bytes: int) -> None:
        self.transport = transport
        self.fleet = topics.check_id(fleet, "fleet id")
        self.dropped = 0
        self._payload_limit_bytes = payload_limit_bytes
        self._inbox: queue.Queue[Delivery] = queue.Queue(_INBOX_SIZE)
        self._reassembler = parts.Reassembler(MAX_MESSAGE_BYTES, MAX_UNFINISHED)
        self._pending_bytes: Counter[str] = Counter()
        self._send_lock = threading.Lock()
        self._next_message_id = 0

    def _enqueue(self, delivery: Delivery) -> None:
        try:
            self._inbox.put_nowait(delivery)
        except queue.Full:
            self.dropped += 1
            if self.dropped & (self.dropped - 1) == 0:
                log.warning("inbox full: %d deliveries dropped so far", self.dropped)

    def _send(
        self, channel: topics.Channel, vehicle: str, message: messages.Up | messages.Down | messages.Status
    ) -> int:
        """Publish, in parts where one payload would be too large; returns the bytes of its packets."""
        topic = topics.topic(channel, self.fleet, vehicle)
        with self._send_lock:
            self._next_message_id += 1
            payloads = parts.split(_ENCODER.encode(message), self._payload_limit_bytes, self._next_message_id)
        for payload in payloads:
            self.transport.publish(topic, payload, qos=channel.qos, retain=channel.retained)
        return sum(publish_packet_bytes(topic, len(payload), channel.qos) for payload in payloads)

    def receive(self, timeout_s: float) -> Received | Malformed | None:
        """The next message, or None when `timeout_s` has passed without a whole one."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                delivery = self._inbox.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return None
            outcome = self._decode(delivery)
            if outcome is not None:
                return outcome

    def _decode(self, delivery: Delivery) -> Received | Malformed | None:
        if not delivery.payload and delivery.topic.endswith(topics.STATUS.name):
            return None  # a cleared retained status
        try:
            address = topics.parse(delivery.topic)
        except WireError as error:
            return Malformed(vehicle="", reason=str(error), packet_bytes=0)
        channel, vehicle = address.channel, address.vehicle
        self._pending_bytes[delivery.topic] += publish_packet_bytes(
            delivery.topic, len(delivery.payload), channel.qos
        )
        try:
            if not self._may_send_parts(vehicle) and parts.is_part(delivery.payload):
                raise WireError(f"a part of a message, and {vehicle!r} is not in this fleet")
            payload = self._reassembler.feed(delivery.topic, delivery.payload)
            if payload is None:
                return None
            message = _DECODERS[channel.name].decode(payload)
            if message.vehicle != vehicle:
                raise WireError(f"message of vehicle {message.vehicle!r} on the topic of {vehicle!r}")
        except (WireError, msgspec.DecodeError, UnicodeDecodeError) as error:
            cost = self._pending_bytes.pop(delivery.topic)
            return Malformed(vehicle=vehicle, reason=_one_line(error), packet_bytes=cost)
        return Received(
            vehicle=vehicle, message=message, packet_bytes=self._pending_bytes.pop(delivery.topic)
        )

    def _may_send_parts(self, vehicle: str) -> bool:
        """Whether room is kept for unfinished messages of this sender."""
        del vehicle
        return True

    def announce(self, status: messages.Status) -> int:
        """Publish a retained status of the sender; returns its packet bytes."""
        return self._send(topics.STATUS, status.vehicle, status)

    def close(self) -> None:
        self.transport.close()


class VehicleLink(_Link):
    """A vehicle's end: sends up, receives down messages and the cloud's status."""

    def __init__(
        self,
        transport: Transport,
        fleet: str,
        vehicle: str,
        *,
        payload_limit_bytes: int = DEFAULT_PAYLOAD_LIMIT_BYTES,
    ) -> None:
        super().__init__(transport, fleet, payload_limit_bytes)
        self.vehicle = topics.check_vehicle_id(vehicle)

    def open(self, timeout_s: float, stop: threading.Event | None = None) -> None:
        """Connect and subscribe.

        Raises:
            BrokerUnreachable: no connection within `timeout_s`, or before `stop` was set.
        """
        self.transport.subscribe(topics.topic(topics.DOWN, self.fleet, self.vehicle), self._enqueue)
        self.transport.subscribe(topics.topic(topics.STATUS, self.fleet, topics.CLOUD_ID), self._enqueue)
        self.transport.connect(timeout_s, stop)

    def send(self, message: messages.Up) -> int:
        """Publish one message to the cloud; returns the bytes of its packets."""
        return self._send(topics.UP, self.vehicle, message)


class CloudLink(_Link):
    """The cloud's end: receives all vehicles' messages and statuses, sends to one vehicle at a time."""

    def __init__(
        self,
        transport: Transport,
        fleet: str,
        *,
        vehicles: Collection[str] | None = None,
        payload_limit_bytes: int = DEFAULT_PAYLOAD_LIMIT_BYTES,
    ) -> None:
        """`vehicles` alone may send messages in parts, so that no stranger fills the memory; None: anyone."""
        super().__init__(transport, fleet, payload_limit_bytes)
        self._vehicles = None if vehicles is None else frozenset(vehicles)

    def _may_send_parts(self, vehicle: str) -> bool:
        return self._vehicles is None or vehicle in self._vehicles

    def open(self, timeout_s: float, stop: threading.Event | None = None) -> None:
        """Connect and subscribe to the fleet.

        Raises:
            BrokerUnreachable: no connection within `timeout_s`, or before `stop` was set.
        """
        self.transport.subscribe(topics.topic_filter(topics.UP, self.fleet), self._enqueue)
        self.transport.subscribe(topics.topic_filter(topics.STATUS, self.fleet), self._enqueue)
        self.transport.connect(timeout_s, stop)

    def send(self, vehicle: str, message: messages.Down) -> int:
        """Publish one message to a vehicle; returns the bytes of its packets."""
        return self._send(topics.DOWN, vehicle, message)


def encode_status(status: messages.Status) -> bytes:
    """The payload of a status, for a last will that the broker publishes in the sender's name."""
    return parts.split(_ENCODER.encode(status), DEFAULT_PAYLOAD_LIMIT_BYTES, 0)[0]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
