"""The broker's twin inside one process: whole rounds run on it without a network, with faults on demand."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from protocol.session.transport import (
    BrokerUnreachable,
    Delivery,
    Handler,
    Traffic,
    Transport,
    Will,
    call_guarded,
    check_topic,
    publish_packet_bytes,
    topic_matches,
)

log = logging.getLogger(__name__)

Predicate = Callable[[str, bytes], bool]
"""Says of (topic, payload) whether a fault befalls the message."""
Recorder = Callable[[str, bytes, int], None]
"""Sees (topic, payload, qos) of what is published, before any fault."""


@dataclass(frozen=True)
class _Message:
    topic: str
    payload: bytes
    qos: int
    retain: bool

    @property
    def packet_bytes(self) -> int:
        return publish_packet_bytes(self.topic, len(self.payload), self.qos)


class MemoryBus:
    """Carries messages between its clients, in the publisher's thread, in order of publishing.

    What a handler publishes is delivered after the message being delivered, as a broker would; other threads
    wait meanwhile.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        """Held through every change and delivery, by the bus and by its clients."""
        self._clients: dict[str, MemoryTransport] = {}
        self._joined: dict[MemoryTransport, int] = {}
        """The how manieth each of them has joined."""
        self._joins = itertools.count()
        self._listening: defaultdict[str, set[MemoryTransport]] = defaultdict(set)
        """By topic: who has subscribed to it by name."""
        self._listening_widely: set[MemoryTransport] = set()
        """Who has subscribed to more than topics by name: few, however many clients there are."""
        self._retained: dict[str, _Message] = {}
        self._recorders: list[Recorder] = []
        self._queue: deque[Callable[[], None]] = deque()
        self._delivering = False
        self._drop: Predicate | None = None
        self._duplicate: Predicate | None = None
        self._delay: Predicate | None = None
        self._delayed: list[_Message] = []

    def client(
        self, client_id: str, *, will: Will | None = None, on_connect: Callable[[], None] | None = None
    ) -> MemoryTransport:
        """A client of this bus; a second one of the same id takes over when it connects, as with MQTT."""
        return MemoryTransport(self, client_id, will, on_connect)

    def record(self, recorder: Recorder) -> None:
        """Show every published message to `recorder` (wills included), in order."""
        with self.lock:
            self._recorders.append(recorder)

    def set_faults(
        self,
        *,
        drop: Predicate | None = None,
        duplicate: Predicate | None = None,
        delay: Predicate | None = None,
    ) -> None:
        """From now on lose, repeat, or hold back behind the next message those that a predicate chooses."""
        with self.lock:
            self._drop, self._duplicate, self._delay = drop, duplicate, delay

    def publish(self, message: _Message) -> None:
        """Take a message from a client, or from the will of one."""
        with self.lock:
            for recorder in self._recorders:
                recorder(message.topic, message.payload, message.qos)
            if self._drop and self._drop(message.topic, message.payload):
                return
            if message.retain and message.payload:
                self._retained[message.topic] = message
            elif message.retain:
                self._retained.pop(message.topic, None)
            if self._delay and self._delay(message.topic, message.payload):
                self._delayed.append(message)
                return
            copies = 2 if self._duplicate and self._duplicate(message.topic, message.payload) else 1
            outgoing = [message] * copies + self._delayed
            self._delayed = []
            self.run_in_order([partial(self._deliver, item) for item in outgoing])

    def join(self, client: MemoryTransport) -> None:
        """Open a client's session; an older one of the same id is dropped."""
        with self.lock:
            older = self._clients.get(client.client_id)
            if older is not None and older is not client:
                older.drop()
            self._clients[client.client_id] = client
            self._joined.setdefault(client, next(self._joins))
            for topic_filter in client.filters:
                self.listen(client, topic_filter)

    def leave(self, client: MemoryTransport, will: Will | None) -> None:
        """End a client's session; `will` is what it leaves behind."""
        with self.lock:
            if self._clients.get(client.client_id) is client:
                del self._clients[client.client_id], self._joined[client]
                for topic_filter in client.filters:
                    self.forget(client, topic_filter)
            if will is not None:
                self.publish(_Message(will.topic, will.payload, will.qos, will.retain))

    def send_retained(self, client: MemoryTransport, topic_filter: str) -> None:
        """Deliver the retained messages that a new subscription asks for."""
        with self.lock:
            if _is_wide(topic_filter):
                found = [m for topic, m in self._retained.items() if topic_matches(topic_filter, topic)]
            else:
                found = [self._retained[topic_filter]] if topic_filter in self._retained else []
            self.run_in_order([partial(client.receive, item, retained=True) for item in found])

    def run_in_order(self, deliveries: list[Callable[[], None]]) -> None:
        """Run `deliveries` after those under way."""
        with self.lock:
            self._queue.extend(deliveries)
            if self._delivering:
                return
            self._delivering = True
            try:
                while self._queue:
                    self._queue.popleft()()
            finally:
                self._delivering = False

    def listen(self, client: MemoryTransport, topic_filter: str) -> None:
        """A client that has joined is to get what a filter matches."""
        if _is_wide(topic_filter):
            self._listening_widely.add(client)
        else:
            self._listening[topic_filter].add(client)

    def forget(self, client: MemoryTransport, topic_filter: str) -> None:
        """A client has left, or wants no more of a filter."""
        if _is_wide(topic_filter):
            if client not in self._joined or not any(map(_is_wide, client.filters)):
                self._listening_widely.discard(client)
            return
        self._listening[topic_filter].discard(client)
        if not self._listening[topic_filter]:
            del self._listening[topic_filter]

    def _deliver(self, message: _Message) -> None:
        widely = (client for client in self._listening_widely if client.hears(message.topic))
        listening = {*self._listening.get(message.topic, ()), *widely}
        for client in sorted(listening, key=self._joined.__getitem__):
            client.receive(message, retained=False)


def _is_wide(topic_filter: str) -> bool:
    return "+" in topic_filter or "#" in topic_filter


class MemoryTransport(Transport):
    """One client of a `MemoryBus`; made by `MemoryBus.client`."""

    def __init__(
        self, bus: MemoryBus, client_id: str, will: Will | None, on_connect: Callable[[], None] | None
    ) -> None:
        self.client_id = client_id
        self._bus = bus
        self._will = will
        self._on_connect = on_connect
        self._subscriptions: dict[str, Handler] = {}
        self._offline: deque[tuple[_Message, Callable[[], None] | None]] = deque()
        self._traffic = Traffic()
        self._connected = False
        self._had_session = False
        self._closed = False
        self._lost_at: float | None = None

    @property
    def connected(self) -> bool:
        return self._connected

    @property
    def traffic(self) -> Traffic:
        return self._traffic

    @property
    def packet_limit_bytes(self) -> int | None:
        return None

    def connect(self, timeout_s: float, stop: threading.Event | None = None) -> None:
        """Open the session, also again after `drop`; what was published meanwhile is sent now."""
        del timeout_s, stop  # nothing to wait for
        with self._bus.lock:
            if self._closed:
                raise BrokerUnreachable(f"memory bus: client {self.client_id!r} was closed")
            self._bus.join(self)
            self._connected = True
            self._lost_at = None
            self._traffic.reconnects += self._had_session
            self._had_session = True
            for topic_filter in list(self._subscriptions):
                self._bus.send_retained(self, topic_filter)
        if self._on_connect is not None:
            self._call(self._on_connect)  # outside the lock: it may take locks of its own
        while True:
            with self._bus.lock:
                if not (self._connected and self._offline):
                    return
                message, on_acknowledged = self._offline.popleft()
                self._send(message)
            self._acknowledge(on_acknowledged)

    def drop(self) -> None:
        """Lose the session as by a cut cable: the bus publishes the will."""
        with self._bus.lock:
            if self._connected:
                self._connected = False
                self._lost_at = time.monotonic()
                self._bus.leave(self, self._will)

    def subscribe(self, topic_filter: str, handler: Handler, qos: int = 1) -> None:
        del qos  # deliveries are never lost here, except by `MemoryBus.set_faults`
        with self._bus.lock:
            self._subscriptions = {**self._subscriptions, topic_filter: handler}
            if self._connected:
                self._bus.listen(self, topic_filter)
                self._bus.send_retained(self, topic_filter)

    def unsubscribe(self, topic_filter: str) -> None:
        with self._bus.lock:
            self._subscriptions = {
                known: handler for known, handler in self._subscriptions.items() if known != topic_filter
            }
            if self._connected:
                self._bus.forget(self, topic_filter)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        on_acknowledged: Callable[[], None] | None = None,
    ) -> None:
        check_topic(topic)
        with self._bus.lock:
            message = _Message(topic, bytes(payload), qos, retain)
            if self._connected:
                self._send(message)
            elif qos == 0 or self._closed:
                self._traffic.dropped += 1
                return
            else:
                self._offline.append((message, on_acknowledged))
                return
        self._acknowledge(on_acknowledged)

    def seconds_disconnected(self) -> float:
        return 0.0 if self._lost_at is None else time.monotonic() - self._lost_at

    def close(self) -> None:
        with self._bus.lock:
            self._closed = True
            if self._connected:
                self._connected = False
                self._lost_at = time.monotonic()
                self._bus.leave(self, None)

    @property
    def filters(self) -> tuple[str, ...]:
        """What it has subscribed to."""
        return tuple(self._subscriptions)

    def hears(self, topic: str) -> bool:
        """Whether one of its subscriptions matches."""
        return any(topic_matches(topic_filter, topic) for topic_filter in self._subscriptions)

    def receive(self, message: _Message, *, retained: bool) -> None:
        """Called by the bus: hand a message to the handlers whose filter it matches."""
        if not self._connected:
            return
        for topic_filter, handler in self._subscriptions.items():
            if topic_matches(topic_filter, message.topic):
                self._traffic.received_packets += 1
                self._traffic.received_bytes += message.packet_bytes
                delivery = Delivery(message.topic, message.payload, retained)
                self._call(partial(handler, delivery))

    def _send(self, message: _Message) -> None:
        self._traffic.sent_packets += 1
        self._traffic.sent_bytes += message.packet_bytes
        self._bus.publish(message)

    def _acknowledge(self, on_acknowledged: Callable[[], None] | None) -> None:
        if on_acknowledged is not None:
            self._call(on_acknowledged)

    def _call(self, callback: Callable[[], None]) -> None:
        call_guarded(callback, self.client_id, self._traffic)
