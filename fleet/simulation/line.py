"""One direction of a vehicle's link: packets wait for those before them, travel, and arrive in order."""

from __future__ import annotations

from collections.abc import Callable

from numpy.random import Generator

SEGMENT_BYTES = 1460


class Shared:
    """One direction of a cell: its vehicles' packets set out one after the other, in the order of sending."""

    def __init__(self, mbit_s: float) -> None:
        self._bytes_per_s = mbit_s * 1e6 / 8
        self.free_s = 0.0
        """When all that was sent has set out."""

    def carry(self, now: float, packet_bytes: int) -> float:
        """A packet is sent now; returns when it has set out."""
        self.free_s = max(now, self.free_s) + packet_bytes / self._bytes_per_s
        return self.free_s


class Line:
    """Says when what is sent arrives."""

    def __init__(
        self,
        *,
        mbit_s: float,
        latency_ms: float,
        jitter_ms: float,
        loss: float,
        random: Generator,
        shared: Shared | None = None,
        spend: Callable[[int], None] = lambda packet_bytes: None,
    ) -> None:
        """`shared` is the cell's direction; `spend` is told of each packet, lost bytes included."""
        self._bytes_per_s = mbit_s * 1e6 / 8
        self._latency_s = latency_ms / 1000
        self._jitter_s = jitter_ms / 1000
        self._loss = loss
        self._random = random
        self._shared = shared
        self._spend = spend
        self._free_s = 0.0
        """When all that was sent has set out."""
        self._arrived_s = 0.0
        """When the latest of it arrives."""
        self.bytes = 0
        """Sent, lost ones included."""

    def carry(self, now: float, packet_bytes: int) -> float:
        """A packet is sent now; returns when it has arrived."""
        again_bytes, rounds = self._lost(packet_bytes)
        self.bytes += packet_bytes + again_bytes
        self._spend(packet_bytes + again_bytes)
        self._free_s = max(now, self._free_s) + (packet_bytes + again_bytes) / self._bytes_per_s
        if self._shared is not None:
            self._free_s = max(self._free_s, self._shared.carry(now, packet_bytes + again_bytes))
        delay_s = self._latency_s * (1 + 2 * rounds)
        if self._jitter_s:
            delay_s += self._jitter_s * self._random.random()
        self._arrived_s = max(self._arrived_s, self._free_s + delay_s)
        return self._arrived_s

    def cut(self, now: float) -> None:
        """What is under way is lost, and nothing waits any more."""
        self._free_s = self._arrived_s = now

    def _lost(self, packet_bytes: int) -> tuple[int, int]:
        """Bytes that are sent again, and the round trips that this takes."""
        again, rounds = 0, 0
        lost = -(-packet_bytes // SEGMENT_BYTES) if self._loss else 0
        while lost:
            lost = int(self._random.binomial(lost, self._loss))
            again += lost
            rounds += lost > 0
        return again * min(packet_bytes, SEGMENT_BYTES), rounds
