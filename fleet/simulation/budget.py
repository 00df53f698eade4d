"""A vehicle's data of a month: when they are used up, and until when it has no link then."""

from __future__ import annotations

MONTH_S = 30 * 86400.0


class Budget:
    """What one vehicle may send and receive, month by month from the run's start on."""

    def __init__(self, month_mb: float) -> None:
        self.month_mb = month_mb
        self.times_out = 0
        """How often it was used up."""
        self.out_until = 0.0
        """Of the run, seconds: there is no link before."""
        self._month = 0
        self._used = 0

    def kept(self) -> tuple[int, int, int, float]:
        """What `go_on` takes."""
        return self._month, self._used, self.times_out, self.out_until

    def go_on(self, month: int, used: int, times_out: int, out_until: float) -> None:
        """Be where it was."""
        self._month, self._used, self.times_out, self.out_until = month, used, times_out, out_until

    def spend(self, now: float, packet_bytes: int) -> bool:
        """A packet crosses; whether it is the one with which the budget is used up."""
        month = int(now // MONTH_S)
        if month != self._month:
            self._month, self._used = month, 0
        self._used += packet_bytes
        if self._used < 1e6 * self.month_mb or now < self.out_until:
            return False
        self.times_out += 1
        self.out_until = (month + 1) * MONTH_S
        return True
