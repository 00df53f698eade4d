"""How a vehicle turns the cloud's answers into a gradient estimate of its encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Estimator(Protocol):
    """An estimator that asks for losses at other weights. θ: float32 (n,), those that learn."""

    def propose(self, theta: NDArray[np.float32], seed: int) -> Sequence[NDArray[np.float32]]:
        """The m points, each float32 (n,), at which the loss of one batch is asked for."""
        ...

    def estimate(self, losses: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float32]:
        """The gradient estimate float32 (n,) from the m losses at the points proposed last, in order.

        Raises:
            ValueError: not m finite numbers.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Perturbations:
    """What a seeded query says besides the features."""

    seeds: tuple[int, ...]
    """One for each direction ξ = ±1."""
    scale_C: NDArray[np.float32]
    """How far each channel is moved along ξ."""
    block: int = 1
    """Features along each side of the squares on which ξ is constant."""


class FeatureEstimator(Protocol):
    """An estimator that asks for loss maps at other features.

    B frames, C channels, H W feature rows and columns, K seeds, y x rows and columns of a map.
    """

    two_sided: bool
    """Whether a difference is between +ξ and −ξ, or between +ξ and the clean features."""

    def map_size(self, feature_shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of the loss maps of features (C, H, W); each must divide that of the features."""
        ...

    def propose(self, features_BCHW: NDArray[np.float32], seed: int) -> Perturbations:
        """How the features of one batch are to be perturbed."""
        ...

    def estimate(self, maps_BMyx: NDArray[np.float32]) -> NDArray[np.float32]:
        """The gradient estimate float32 (B, C, H, W) of the mean of the frames' losses.

        `maps_BMyx` is float32 (B, 1 + K, y, x): loss maps at the features proposed last, then each seed's
        difference. The mean over a map's cells is the loss of its frame.

        Raises:
            ValueError: another shape than was asked for, or a number that is not finite.
        """
        ...
