"""How the learning rate moves over a run whose number of steps is declared beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable


def constant_rate(step: int, total_steps: int) -> float:
    """Full rate throughout."""
    return 1.0


def cosine_rate(step: int, total_steps: int) -> float:
    """From full rate in the first step down to nothing in the last along half a cosine."""
    return _half_cosine(0, step, total_steps - 1)


def one_cycle_rate(step: int, total_steps: int) -> float:
    """Up from 1/25 over the first 30 %, down to 1/250,000, each half a cosine (as torch's OneCycleLR)."""
    peak, start, end = max(0.3 * total_steps - 1, 0.0), 1 / 25, 1 / 250_000
    if step < peak:
        return start + (1.0 - start) * (1.0 - _half_cosine(0, step, peak))
    return end + (1.0 - end) * _half_cosine(peak, step, total_steps - 1)


def _half_cosine(first: float, step: float, last: float) -> float:
    progress = (step - first) / (last - first) if last > first else 0.0
    return 0.5 * (1.0 + math.cos(math.pi * progress))


SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": constant_rate,
    "one-cycle": one_cycle_rate,
    "cosine": cosine_rate,
}
"""(step from 0, total steps above it) → share of the highest rate."""
