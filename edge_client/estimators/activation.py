"""Perturbed features and loss maps: each feature's share of the loss around it, from seeded signs.

Node perturbation with local credit. B frames, C channels, H W feature rows and columns, K seeds, y x rows and
columns of a loss map.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_client.estimators import Perturbations
from edge_client.estimators.windows import check_distance, check_maps, map_size, range_sums
from protocol.errors import SettingError
from protocol.noise import derive_seed
from protocol.perturbation import directions
from protocol.plans.checks import LossMapPlan


class Activation:
    """The gradient of the loss at the features, from loss maps at perturbed ones.

    ĝ = mean over K of (box ∗ Δℓ)·ξ / (s σ), ξ = ±1; for two-sided differences half of it. σ is the standard
    deviation of each channel over the batch, Δℓ what a perturbation adds to each cell's share of the batch's
    loss, and box sums the cells of a window. A window over the whole map makes ĝ's expectation the gradient
    up to O(s²); a narrower one leaves out what a feature does to the loss further away, and the noise from
    there. The variance falls as 1/K.

    With blocks ξ is constant on squares of b × b features, which share the mean of their gradients: b² times
    fewer unknowns, and a window that is as far from every edge of its square as it is from a single feature.

    Args:
        scale: s, in standard deviations of a channel.
        seeds: K.
        two_sided: whether a difference is between +ξ and −ξ, or between +ξ and the clean features.
        map_stride: feature cells that a cell of the map covers along each side.
        box_width: side of the window in cells of the map, odd.
        block: b, features that a direction is constant on along each side.

    Raises:
        ValueError: a value out of its range.
    """

    name = "activation"

    def __init__(
        self,
        *,
        scale: float = 0.1,
        seeds: int = 16,
        two_sided: bool = False,
        map_stride: int = 1,
        box_width: int = 5,
        block: int = 1,
    ) -> None:
        check_distance("perturbation scale", scale)
        for name, value in (
            ("number of seeds", seeds),
            ("map stride", map_stride),
            ("box width", box_width),
            ("block", block),
        ):
            if value < 1:
                raise SettingError(f"{name} must be at least 1, got {value}")
        if box_width % 2 == 0:
            raise SettingError(f"box width must be odd, got {box_width}")
        self.scale = scale
        self.seeds = seeds
        self.two_sided = two_sided
        self.map_stride = map_stride
        self.box_width = box_width
        self.block = block
        self._shape_BCHW: tuple[int, ...] = ()
        self._proposed: Perturbations | None = None

    def map_size(self, feature_shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of the loss maps of features whose shape ends with (H, W).

        Raises:
            ValueError: the map stride doesn't divide them.
        """
        return map_size(feature_shape, self.map_stride)

    def propose(self, features_BCHW: NDArray[np.float32], seed: int) -> Perturbations:
        """K seeds drawn from `seed`, and s·σ of each channel."""
        sigma_C = features_BCHW.std(axis=(0, 2, 3), dtype=np.float64)
        self._shape_BCHW = features_BCHW.shape
        self._proposed = Perturbations(
            seeds=tuple(derive_seed(seed, number) for number in range(self.seeds)),
            scale_C=(self.scale * sigma_C).astype(np.float32),
            block=self.block,
        )
        return self._proposed

    def estimate(self, maps_BMyx: NDArray[np.float32]) -> NDArray[np.float32]:
        """ĝ float32 (B, C, H, W) from maps of the features proposed last; see `FeatureEstimator.estimate`.

        A channel that does not vary is not moved, and its gradient is 0.

        Raises:
            ValueError: another shape than was asked for, or a number that is not finite.
        """
        assert self._proposed is not None, "estimate() before propose()"
        frames = self._shape_BCHW[0]
        expected = (frames, 1 + self.seeds, *self.map_size(self._shape_BCHW))
        check_maps(maps_BMyx, expected)
        # A map's mean is its frame's loss: this is what each cell adds to the mean over frames.
        credit_BKHW = self._window_sums(maps_BMyx[:, 1:]) / (frames * math.prod(expected[2:]))
        total_BCHW = np.zeros(self._shape_BCHW, np.float64)
        for number, seed in enumerate(self._proposed.seeds):
            total_BCHW += credit_BKHW[:, number, None] * directions(seed, self._shape_BCHW, self.block)
        moved_C = self.seeds * (2 if self.two_sided else 1) * self._proposed.scale_C.astype(np.float64)
        inverse_C = np.divide(1.0, moved_C, out=np.zeros_like(moved_C), where=moved_C > 0)
        gradient_BCHW: NDArray[np.float32] = (total_BCHW * inverse_C[:, None, None]).astype(np.float32)
        return gradient_BCHW

    def _window_sums(self, maps_BKyx: NDArray[np.floating]) -> NDArray[np.float64]:
        """For each feature (B, K, H, W) the sum over its window, divided by the features of its block."""
        total = maps_BKyx.astype(np.float64)
        for axis, length in ((2, self._shape_BCHW[2]), (3, self._shape_BCHW[3])):
            first = np.arange(length) // self.block * self.block
            stop = np.minimum(first + self.block, length)
            reach = self.box_width // 2
            total = range_sums(
                total, axis, first // self.map_stride - reach, -(-stop // self.map_stride) + reach
            )
            total /= (stop - first).reshape(-1, *(1,) * (3 - axis))
        return total


def estimator_of(plan: LossMapPlan) -> Activation:
    """What asks the questions of a plan, and reads the answers.

    Raises:
        SettingError: a setting is out of its range.
    """
    return Activation(
        scale=plan.scale,
        seeds=plan.seeds,
        two_sided=plan.two_sided,
        map_stride=plan.map_stride,
        box_width=plan.box_width,
        block=plan.block,
    )
