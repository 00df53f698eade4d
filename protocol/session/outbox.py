"""What one client has published and the broker has not acknowledged, and what that cost."""

from __future__ import annotations

import logging
from collections import deque
from itertools import islice

from protocol.session.transport import Traffic

log = logging.getLogger(__name__)


class Outbox:
    """Bounds and counts outgoing messages. Its owner locks around every method but `acknowledge`."""

    def __init__(self, client_id: str, traffic: Traffic, max_queued: int) -> None:
        self.waiting: deque[tuple[str, bytes, bool]] = deque()
        """Topic, payload and retain flag of QoS 1 messages for which there was no session yet."""
        self._client_id = client_id
        self._traffic = traffic
        self._max_queued = max_queued
        self._sent: dict[int, int] = {}
        """Packet bytes by message id, oldest first, of what awaits its acknowledgement."""
        self._acknowledged: deque[int] = deque()

    @property
    def full(self) -> bool:
        """Whether one more message would exceed the bound."""
        return self.unacknowledged + len(self.waiting) >= self._max_queued

    @property
    def unacknowledged(self) -> int:
        """QoS 1 messages that were sent and not acknowledged."""
        while self._acknowledged:
            self._sent.pop(self._acknowledged.popleft(), None)
        return len(self._sent)

    def acknowledge(self, message_id: int) -> None:
        """Note an acknowledgement; needs no lock, so that a library may call it with a lock of its own."""
        self._acknowledged.append(message_id)

    def sent(self, message_id: int | None, packet_bytes: int) -> None:
        """Count a message that was handed over; `message_id` where an acknowledgement will come."""
        self._traffic.sent_packets += 1
        self._traffic.sent_bytes += packet_bytes
        if message_id is not None:
            self._sent[message_id] = packet_bytes

    def resent(self, max_in_flight: int) -> None:
        """Count what a new session sends again: the oldest `max_in_flight` unacknowledged messages."""
        again = list(islice(self._sent.values(), min(self.unacknowledged, max_in_flight)))
        self._traffic.sent_packets += len(again)
        self._traffic.sent_bytes += sum(again)

    def drop(self, reason: str) -> None:
        """Count a message that is not sent, and log the first, second, fourth, eighth, …"""
        self._traffic.dropped = dropped = self._traffic.dropped + 1
        if dropped & (dropped - 1) == 0:
            log.warning("%s: %d messages dropped so far (%s)", self._client_id, dropped, reason)
