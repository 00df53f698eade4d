"""What a vehicle learnt in a turn, clipped and noised before it is sent: local differential privacy.

One update of a vehicle is the Gaussian mechanism (Dwork and Roth, 2014): whatever its train frames are, the
change of the weights is no longer than C, so that two answers to the same weights are at most 2C apart, and
each number has noise of σ·C. What it costs over a run is an accountant's to say (`fleet.privacy_budget`).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.codec.weights import WeightArrays
from protocol.noise import derive_seed, uniform


@dataclass(frozen=True, kw_only=True)
class UpdateNoise:
    """How updates are clipped and noised."""

    clip: float
    """C: the greatest length of all changes together, as one vector."""
    noise: float
    """σ, in clips."""
    seed: int
    """The vehicle's secret: who knows it takes the noise off."""


def noised(weights: WeightArrays, before: WeightArrays, noise: UpdateNoise, asked: bytes) -> WeightArrays:
    """`before` and the clipped, noised change to `weights`, float32 by name; `asked` is all that decides what
    is learnt besides.

    The noise follows from the secret, from `before` and from `asked`: the same turn done again sends the
    same, and no two updates that could differ have the same noise, of which the difference would be clean.
    """
    told = hashlib.sha256(asked).hexdigest()
    seed = derive_seed(noise.seed, "update-noise", _digest(before), told)
    changes = {
        name: weights[name].astype(np.float64) - before[name].astype(np.float64) for name in sorted(before)
    }
    length = math.sqrt(sum(float(np.sum(change**2)) for change in changes.values()))
    share = min(1.0, noise.clip / length) if length > 0 else 1.0
    return {
        name: (
            before[name]
            + share * change
            + noise.noise * noise.clip * _normal(derive_seed(seed, name), change.size).reshape(change.shape)
        ).astype(np.float32)
        for name, change in changes.items()
    }


def _digest(weights: WeightArrays) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(weights):
        digest.update(name.encode() + b"\0" + weights[name].astype("<f4").tobytes())
    return digest.hexdigest()


def _normal(seed: int, n: int) -> NDArray[np.float64]:
    """Standard normal numbers (Box and Muller, 1958)."""
    half = -(-n // 2)
    first, second = np.split(uniform(seed, 2 * half), 2)
    radius, angle = np.sqrt(-2 * np.log1p(-first)), 2 * np.pi * second
    drawn: NDArray[np.float64] = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return drawn[:n]
