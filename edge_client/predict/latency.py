"""How fast frames are served, and how old they are by then."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from edge_client.recent import RecentRate, Seeing

_LATEST = 10_000
"""Latencies that percentiles are of."""
PERCENTILES = (50, 95, 99)


class Pace:
    """Counts what was served.

    Attributes:
        served: frames in all.
    """

    def __init__(self) -> None:
        self.served = 0
        self._latencies_ms: deque[float] = deque(maxlen=_LATEST)
        self._first_s = self._last_s = 0.0
        self._recent = RecentRate()

    def note(self, taken_s: float, served_s: float) -> None:
        """A frame that came at `taken_s` was served at `served_s`, both of one clock."""
        if self.served == 0:
            self._first_s = taken_s
        self.served += 1
        self._recent.note()
        self._last_s = served_s
        self._latencies_ms.append(1000 * (served_s - taken_s))

    @property
    def rate_hz(self) -> float:
        """Frames a second, from the first to come to the last to be served."""
        elapsed_s = self._last_s - self._first_s
        return self.served / elapsed_s if elapsed_s > 0 else 0.0

    def latency_ms(self) -> dict[str, float]:
        """Percentiles of the latest frames, `p50` and so on; empty where there were none."""
        if not self._latencies_ms:
            return {}
        values = np.percentile(np.array(self._latencies_ms), PERCENTILES)
        return {f"p{percent}": round(float(ms), 2) for percent, ms in zip(PERCENTILES, values, strict=True)}

    def seeing(self) -> Seeing:
        """How often of late, and how old frames are by then."""
        p95_ms = self.latency_ms().get("p95")
        return Seeing(served_hz=self._recent.hz, served_ms=None if p95_ms is None else round(p95_ms))

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        return {"served": self.served, "rate_hz": round(self.rate_hz, 2), "latency_ms": self.latency_ms()}

    def __str__(self) -> str:
        latencies = ", ".join(f"{name} {ms:.1f} ms" for name, ms in self.latency_ms().items())
        return f"{self.served} class maps, {self.rate_hz:.1f} a second" + (latencies and f"; {latencies}")
