"""Numbers that may come from another machine: finite is not enough."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST = 1e6
"""Magnitude of a feature or a weight. Beyond it sums of squares leave float32 soon, and one sender's numbers
would end everybody's training."""


def implausible(values: NDArray[np.floating[Any]]) -> str:
    """What is wrong with some numbers, for an error's line; empty where nothing is."""
    if not np.isfinite(values).all():
        return "NaN or infinity"
    largest = float(np.abs(values).max(initial=0.0))
    return f"numbers up to {largest:.3g}, {LARGEST:.0e} is the most" if largest > LARGEST else ""
