"""What one client has published and the broker has not acknowledged, and what that cost."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from protocol.session.transport import Traffic

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A QoS 1 message for which there was no session yet."""

    topic: str
    payload: bytes
    retain: bool
    on_acknowledged: Callable[[], None] | None


@dataclass(frozen=True, slots=True)
class _Sent:
    packet_bytes: int
    on_acknowledged: Callable[[], None] | None


class Outbox:
    """Bounds and counts outgoing messages. Its owner locks around every method but `acknowledge`."""

    def __init__(self, client_id: str, traffic: Traffic, max_queued: int) -> None:
        self.waiting: deque[Waiting] = deque()
        self._client_id = client_id
        self._traffic = traffic
        self._max_queued = max_queued
        self._sent: dict[int, _Sent] = {}
        """By message id, oldest first: what awaits its acknowledgement."""
        self._acknowledged: deque[int] = deque()

    @property
    def full(self) -> bool:
        """Whether one more message would exceed the bound."""
        return self.unacknowledged + len(self.waiting) >= self._max_queued

    @property
    def unacknowledged(self) -> int:
        """QoS 1 messages that were sent and whose acknowledgement is not settled."""
        return len(self._sent)

    def acknowledge(self, message_id: int) -> None:
        """Note an acknowledgement; needs no lock, so that a library may call it with a lock of its own."""
        self._acknowledged.append(message_id)

    def settle(self) -> list[Callable[[], None]]:
        """Take what was acknowledged off; returns what is to be called for it, in order, without the lock."""
        settled = []
        while self._acknowledged:
            sent = self._sent.pop(self._acknowledged.popleft(), None)
            if sent is not None and sent.on_acknowledged is not None:
                settled.append(sent.on_acknowledged)
        return settled

    def sent(
        self, message_id: int | None, packet_bytes: int, on_acknowledged: Callable[[], None] | None
    ) -> None:
        """Count a message that was handed over; `message_id` where an acknowledgement will come."""
        self._traffic.sent_packets += 1
        self._traffic.sent_bytes += packet_bytes
        if message_id is not None:
            self._sent[message_id] = _Sent(packet_bytes, on_acknowledged)

    def resent(self, max_in_flight: int) -> None:
        """Count what a new session sends again: the oldest `max_in_flight` unacknowledged messages."""
        acknowledged = set(self._acknowledged)
        open_ones = (sent for message_id, sent in self._sent.items() if message_id not in acknowledged)
        again = [sent.packet_bytes for sent in islice(open_ones, max_in_flight)]
        self._traffic.sent_packets += len(again)
        self._traffic.sent_bytes += sum(again)

    def drop(self, reason: str) -> None:
        """Count a message that is not sent, and log the first, second, fourth, eighth, …"""
        self._traffic.dropped = dropped = self._traffic.dropped + 1
        if dropped & (dropped - 1) == 0:
            log.warning("%s: %d messages dropped so far (%s)", self._client_id, dropped, reason)
