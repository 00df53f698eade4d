"""A vehicle's session over a simulated link: the bus in memory, reached after bytes, bandwidth and distance.

A packet of the vehicle's comes to the bus when its line up has carried it, and its acknowledgement a latency
later; what the bus has for the vehicle arrives by its line down. While the vehicle is away the session is
lost, as by a cut cable: what was not acknowledged is sent again afterwards, what was on its way down is lost.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from fleet.simulation.line import Line
from protocol.session.memory import MemoryTransport
from protocol.session.transport import (
    Delivery,
    Handler,
    Traffic,
    Transport,
    call_guarded,
    check_topic,
    publish_packet_bytes,
)

_ROUND_TRIPS = 2
"""Before a session is there: TCP's and MQTT's own."""


class Cancelled(Protocol):
    """What was planned."""

    def cancel(self) -> None: ...


class Times(Protocol):
    """What a session needs of a clock."""

    def now(self) -> float: ...

    def at(self, time_s: float, action: Callable[[], None]) -> Cancelled: ...


@dataclass
class _Packet:
    topic: str
    payload: bytes
    qos: int
    retain: bool
    on_acknowledged: Callable[[], None] | None
    planned: Cancelled | None = None


class LinkedTransport(Transport):
    """One vehicle's session."""

    def __init__(
        self,
        inner: MemoryTransport,
        on_connect: Callable[[], None] | None,
        *,
        times: Times,
        up: Line,
        down: Line,
        round_trip_s: float,
        next_there: Callable[[float], float] = lambda now: now,
    ) -> None:
        """`inner` is the session on the bus; `next_there` says when, from some moment on, the vehicle is
        there."""
        self._inner = inner
        self._on_connect = on_connect
        self._times = times
        self._up = up
        self._down = down
        self._round_trip_s = round_trip_s
        self._next_there = next_there
        self._lock = threading.RLock()
        """Around what follows; never held while anybody else is called."""
        self._connected = False
        self._wanted = False
        self._closed = False
        self._lost_at: float | None = None
        self._away_s = 0.0
        self.absences = 0
        """How often the session was lost."""
        self.packets_again = 0
        """Packets that were sent again, as they were not acknowledged when it was lost."""
        self._had_session = False
        self._under_way: deque[_Packet] = deque()
        """Up, not acknowledged."""
        self._waiting: deque[_Packet] = deque()
        self._arriving: set[Cancelled] = set()
        self._traffic = Traffic()

    @property
    def connected(self) -> bool:
        return self._connected

    @property
    def traffic(self) -> Traffic:
        return self._traffic

    @property
    def packet_limit_bytes(self) -> int | None:
        return None

    @property
    def away_s(self) -> float:
        """Seconds without a session, once there had been one wanted."""
        return self._away_s + self.seconds_disconnected()

    def connect(self, timeout_s: float, stop: threading.Event | None = None) -> None:
        """Returns at once: the session is there some round trips after the vehicle is.

        Whoever waits here would keep other vehicles of its host from connecting.
        """
        del timeout_s, stop
        now = self._times.now()
        self._lost_at, self._wanted = now, True
        if self._next_there(now) == now:
            self.come_back()

    def drop(self) -> None:
        """The vehicle goes away."""
        with self._lock:
            if not self._connected:
                return
            self._connected = False
            self._lost_at = self._times.now()
            for packet in self._under_way:
                if packet.planned is not None:
                    packet.planned.cancel()
            again = [packet for packet in self._under_way if packet.qos]
            self.absences += 1
            self.packets_again += len(again)
            self._waiting.extendleft(reversed(again))
            self._under_way.clear()
            for planned in self._arriving:
                planned.cancel()
            self._arriving.clear()
            self._up.cut(self._times.now())
            self._down.cut(self._times.now())
        self._inner.drop()

    def come_back(self) -> None:
        """The vehicle is there again: it has a session some round trips later."""
        if self._wanted and not self._closed and not self._connected:
            self._times.at(self._times.now() + _ROUND_TRIPS * self._round_trip_s, self._establish)

    def go_on(self, away_s: float, absences: int, packets_again: int) -> None:
        """Count on from there; what this process has done so far is none of the run's."""
        with self._lock:
            self._away_s, self.absences, self.packets_again = away_s, absences, packets_again
            if self._lost_at is not None:
                self._lost_at = self._times.now()

    def subscribe(self, topic_filter: str, handler: Handler, qos: int = 1) -> None:
        self._inner.subscribe(topic_filter, partial(self._arrive, handler, qos), qos)

    def unsubscribe(self, topic_filter: str) -> None:
        self._inner.unsubscribe(topic_filter)

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
        packet = _Packet(topic, bytes(payload), qos, retain, on_acknowledged)
        with self._lock:
            if self._connected:
                self._send(packet)
            elif qos == 0 or self._closed:
                self._traffic.dropped += 1
            else:
                self._waiting.append(packet)

    def seconds_disconnected(self) -> float:
        return 0.0 if self._lost_at is None else self._times.now() - self._lost_at

    def close(self) -> None:
        """What was handed over arrives first."""
        with self._lock:
            self._closed = True
            was_connected, self._connected = self._connected, False
            if self._lost_at is not None:
                self._away_s += self._times.now() - self._lost_at
                self._lost_at = None
        if was_connected:
            self._times.at(self._up.carry(self._times.now(), 2), self._inner.close)
        else:
            self._inner.close()

    def _establish(self) -> None:
        now = self._times.now()
        with self._lock:
            if self._closed or self._connected or self._next_there(now) > now:
                return
            if self._lost_at is not None:
                self._away_s += now - self._lost_at
            self._lost_at = None
            self._connected = True
            self._traffic.reconnects += self._had_session
            self._had_session = True
        self._inner.connect(0.0)
        if self._on_connect is not None:
            call_guarded(self._on_connect, self._inner.client_id, self._traffic)
        with self._lock:
            while self._waiting and self._connected:
                self._send(self._waiting.popleft())

    def _send(self, packet: _Packet) -> None:
        """Under the lock."""
        size = publish_packet_bytes(packet.topic, len(packet.payload), packet.qos)
        self._traffic.sent_packets += 1
        self._traffic.sent_bytes += size
        self._under_way.append(packet)
        packet.planned = self._times.at(
            self._up.carry(self._times.now(), size), partial(self._reach_the_bus, packet)
        )

    def _reach_the_bus(self, packet: _Packet) -> None:
        with self._lock:
            if packet not in self._under_way:
                return  # it went away in the same moment
            packet.planned = self._times.at(
                self._times.now() + self._round_trip_s / 2, partial(self._acknowledge, packet)
            )
        self._inner.publish(packet.topic, packet.payload, qos=packet.qos, retain=packet.retain)

    def _acknowledge(self, packet: _Packet) -> None:
        with self._lock:
            if packet not in self._under_way:
                return
            self._under_way.remove(packet)
        if packet.on_acknowledged is not None:
            call_guarded(packet.on_acknowledged, self._inner.client_id, self._traffic)

    def _arrive(self, handler: Handler, qos: int, delivery: Delivery) -> None:
        """The bus has something for the vehicle."""
        size = publish_packet_bytes(delivery.topic, len(delivery.payload), qos)
        with self._lock:
            if not self._connected:
                return
            planned: list[Cancelled] = []

            def hand_over() -> None:
                with self._lock:
                    if planned[0] not in self._arriving:
                        return
                    self._arriving.discard(planned[0])
                    self._traffic.received_packets += 1
                    self._traffic.received_bytes += size
                call_guarded(lambda: handler(delivery), self._inner.client_id, self._traffic)

            planned.append(self._times.at(self._down.carry(self._times.now(), size), hand_over))
            self._arriving.add(planned[0])
