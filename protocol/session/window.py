"""How much may be under way at once: as much as arrives within two seconds.

Less, and a long line would stand idle; more, and what is urgent (a heartbeat, a word that all is over) would
wait behind what is not, and a cut connection would lose more than it must.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.session.clock import Clock

_AHEAD_S = 2.0
_FIRST_BYTES = 256 * 1024
_LEAST_BYTES = 64 * 1024
_MOST_BYTES = 8 * 1024 * 1024
_MOST_PACKETS = 256


@dataclass(frozen=True, slots=True)
class Passage:
    """One packet under way."""

    bytes: int
    entered_at: float
    ahead_bytes: int
    """Of this packet and all that were under way when it entered."""


class Window:
    """Bytes and packets that have entered and not left; its owner locks around it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.size_bytes = _FIRST_BYTES
        """Nothing enters while so much is under way; follows the line's speed."""
        self.bytes = 0
        """Under way."""
        self.packets = 0

    @property
    def open(self) -> bool:
        """Whether one more packet, of whatever size, may enter."""
        return self.bytes < self.size_bytes and self.packets < _MOST_PACKETS

    def enter(self, packet_bytes: int) -> Passage:
        """A packet sets out."""
        self.bytes += packet_bytes
        self.packets += 1
        return Passage(packet_bytes, self._clock.now(), self.bytes)

    def leave(self, passage: Passage) -> None:
        """It has arrived: what was ahead of it has, too, so that the line's speed is known."""
        self.forget(passage)
        took_s = max(self._clock.now() - passage.entered_at, 1e-6)
        fitting = int(passage.ahead_bytes / took_s * _AHEAD_S)
        if took_s < _AHEAD_S:
            fitting = max(fitting, self.size_bytes)
        self.size_bytes = min(max(fitting, _LEAST_BYTES), _MOST_BYTES)

    def forget(self, passage: Passage) -> None:
        """It is not under way any more, and says nothing of the line."""
        self.bytes -= passage.bytes
        self.packets -= 1
