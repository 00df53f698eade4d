"""What one set of weights is made of those of several vehicles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from protocol.codec.weights import WeightArrays


@dataclass(frozen=True, kw_only=True)
class LocalUpdate:
    """What one vehicle made of the global weights."""

    samples: int
    loss: float
    weights: WeightArrays


def weighted_average(updates: Sequence[LocalUpdate]) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Σ nₖ wₖ / Σ nₖ of each tensor, nₖ the update's samples; float64."""
    total = sum(update.samples for update in updates)
    return {
        name: np.sum([update.weights[name].astype(np.float64) * update.samples for update in updates], axis=0)
        / total
        for name in updates[0].weights
    }
