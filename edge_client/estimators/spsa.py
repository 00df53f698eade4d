"""Simultaneous perturbation stochastic approximation over all encoder weights, as in BlackFed.

Spall (1992); BlackFed (arXiv 2410.24181), section 3; BlackVIP (arXiv 2303.14773), equation 5.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_client.estimators.windows import check_distance
from protocol.errors import SettingError
from protocol.noise import derive_seed, segmented_uniform


class Spsa:
    """Two-sided SPSA, averaged over q independent directions.

    ĝ = mean over q of (L(θ + c·u) − L(θ − c·u)) / (2c) ⊘ u,  u elementwise uniform on ±[0.5, 1].

    Its expectation is the gradient up to O(c²), and its variance falls as 1/q. The gradient correction
    of SPSA-GC is the optimizer's part: `edge_client.optimizers.Nesterov`.

    Args:
        perturbation: c, in units of the weights.
        queries: q, two-sided; each costs two losses.

    Raises:
        ValueError: a perturbation that is not positive and finite, or fewer queries than one.
    """

    name = "spsa-gc"

    def __init__(self, *, perturbation: float = 0.01, queries: int = 5) -> None:
        check_distance("perturbation scale", perturbation)
        if queries < 1:
            raise SettingError(f"number of queries must be at least 1, got {queries}")
        self.perturbation = perturbation
        self.queries = queries
        self._directions: list[NDArray[np.float32]] = []

    def propose(self, theta: NDArray[np.float32], seed: int) -> list[NDArray[np.float32]]:
        """θ + c·u₁, θ − c·u₁, θ + c·u₂, …: 2q points float32 (n,), each u drawn from `seed`."""
        self._directions = [
            segmented_uniform(derive_seed(seed, query), theta.size) for query in range(self.queries)
        ]
        points: list[NDArray[np.float32]] = []
        for u in self._directions:
            step = np.float32(self.perturbation) * u
            points += [theta + step, theta - step]
        return points

    def estimate(self, losses: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float32]:
        """ĝ float32 (n,) from the 2q losses in the order of `propose`.

        Raises:
            ValueError: another number of losses, or one that is not finite.
        """
        assert self._directions, "estimate() before propose()"
        values = np.asarray(losses, np.float64)
        if values.shape != (2 * self.queries,) or not np.isfinite(values).all():
            raise ValueError(f"expected {2 * self.queries} finite losses, got {values.tolist()}")
        slopes = (values[0::2] - values[1::2]) / (2 * self.perturbation)
        total = np.zeros(self._directions[0].size, np.float64)
        for slope, u in zip(slopes, self._directions, strict=True):
            total += slope / u
        return (total / self.queries).astype(np.float32)
