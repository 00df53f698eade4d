"""How far runs that differ in their seed lie apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def sample_deviation(values: Sequence[float]) -> float:
    """The sample standard deviation, n − 1 in the denominator; 0 for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
