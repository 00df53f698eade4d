"""What a vehicle has computed in turns of learning, as it says itself."""

from __future__ import annotations

import msgspec

from protocol.messages import Work


class WorkCounts(msgspec.Struct, kw_only=True):
    """Of one vehicle, of committed stages of learning alone: without the evaluations before and after."""

    forwards: int = 0
    """Frames through its encoder."""
    ways_back: int = 0
    """Frames back through it."""
    forward_equivalents: float | None = 0.0
    """All multiply-adds in those of one frame's pass through its encoder; None where a turn did not say."""

    def add(self, work: Work | None) -> None:
        """A turn is finished; None: it did not say."""
        told = None if work is None else work.forward_equivalents
        if work is not None:
            self.forwards += work.forwards
            self.ways_back += work.ways_back
        known = self.forward_equivalents
        self.forward_equivalents = None if told is None or known is None else known + told
