"""SPSA in each region of each frame: many directions of the weights in one query, read off a loss map.

B frames, C channels, H W feature rows and columns, K moves, R regions of a frame, y x rows and columns of a
loss map; φ float32 (m,) what learns.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_client.estimators.forward_differences import Forward
from edge_client.estimators.orthogonal import orthogonal_signs
from edge_client.estimators.windows import check_distance, check_maps, map_size, range_sums
from protocol.errors import SettingError


class RegionSpsa:
    """The gradient of the loss at φ from loss maps of features that moved as φ was moved, region by region.

    ĝ = mean over K of Σ_b Σ_r w_br·u_br / 2c, u = ±1 elementwise, another one for each region r of each
    frame b and each move. w_br is what the move from −d to +d adds to the region's share of the batch's
    loss, d being f(φ + c·u_br) − f(φ) in the region, f the encoder. If features matter to the loss of
    their own region alone, the expectation of ĝ is the gradient up to O(c). Its variance is m − 1 times
    the sum of squares of the regions' gradients, where one direction for all has m − 1 times the square
    of their sum: the less, the more regions agree. What a region does to the loss of others is left out,
    what others do to its own is noise. After SPSA (Spall 1992); a direction for each example is Flipout's
    (Wen et al. 2018, arXiv 1803.04386).

    Args:
        perturbation: c, in units of φ.
        region: features along each side of a region; those at the far edges are cut where they don't fit.
        moves: K.
        map_stride: feature cells that a cell of the map covers along each side.
        margin: cells of the map around a region whose loss counts for it, too.

    Raises:
        SettingError: a value out of its range.
    """

    name = "region-spsa"

    def __init__(
        self,
        *,
        perturbation: float = 0.01,
        region: int = 8,
        moves: int = 1,
        map_stride: int = 1,
        margin: int = 0,
    ) -> None:
        check_distance("perturbation scale", perturbation)
        for name, value, least in (
            ("region", region, 1),
            ("number of moves", moves, 1),
            ("map stride", map_stride, 1),
            ("margin", margin, 0),
        ):
            if value < least:
                raise SettingError(f"{name} must be at least {least}, got {value}")
        self.perturbation = perturbation
        self.region = region
        self.moves = moves
        self.map_stride = map_stride
        self.margin = margin
        self._shape_BCHW: tuple[int, ...] = ()
        self._signs_KBRm: NDArray[np.int8] | None = None

    def map_size(self, feature_shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of the loss maps of features whose shape ends with (H, W).

        Raises:
            SettingError: the map stride doesn't divide them.
        """
        return map_size(feature_shape, self.map_stride)

    def regions(self, feature_shape: tuple[int, ...]) -> list[tuple[slice, slice]]:
        """Rows and columns of features of each region of a frame, row by row."""
        rows, columns = (
            [slice(first, min(first + self.region, length)) for first in range(0, length, self.region)]
            for length in feature_shape[-2:]
        )
        return [(row, column) for row in rows for column in columns]

    def propose(
        self, phi: NDArray[np.float32], features_BCHW: NDArray[np.float32], forward: Forward, seed: int
    ) -> NDArray[np.float32]:
        """The moves d of all features, float32 (K, B, C, H, W), u drawn from `seed`.

        One forward pass of a frame for each of its regions and moves, of which the region is taken.

        Args:
            phi: where the weights are.
            features_BCHW: there.
            forward: runs the encoder elsewhere.
            seed: of the directions.
        """
        regions = self.regions(features_BCHW.shape)
        self._shape_BCHW = features_BCHW.shape
        shape = (self.moves, len(features_BCHW), len(regions))
        self._signs_KBRm = orthogonal_signs(seed, math.prod(shape), phi.size).reshape(*shape, phi.size)
        reach = np.float32(self.perturbation)
        moves_KBCHW = np.zeros((self.moves, *features_BCHW.shape), np.float32)
        for move, frame, number in np.ndindex(*self._signs_KBRm.shape[:-1]):
            at = (slice(None), *regions[number])
            moved_CHW = forward(phi + reach * self._signs_KBRm[move, frame, number], frame)
            moves_KBCHW[move, frame][at] = moved_CHW[at] - features_BCHW[frame][at]
        return moves_KBCHW

    def estimate(self, maps_BMyx: NDArray[np.float32]) -> NDArray[np.float32]:
        """ĝ float32 (m,) of the mean of the frames' losses, from maps (B, 1 + K, y, x): that of the clean
        features proposed last, then of each move what it adds between −d and +d.

        Raises:
            ValueError: another shape than was asked for, or a number that is not finite.
        """
        assert self._signs_KBRm is not None, "estimate() before propose()"
        frames = self._shape_BCHW[0]
        expected = (frames, 1 + self.moves, *self.map_size(self._shape_BCHW))
        check_maps(maps_BMyx, expected)
        added_KBR = self._region_sums(maps_BMyx[:, 1:]).swapaxes(0, 1)
        # A map's mean is its frame's loss: this is what a cell adds to the mean over frames and moves.
        weight = 1 / (frames * math.prod(expected[2:]) * self.moves * 2 * self.perturbation)
        parameters = self._signs_KBRm.shape[-1]
        gradient: NDArray[np.float32] = (
            (weight * added_KBR).astype(np.float32).ravel() @ self._signs_KBRm.reshape(-1, parameters)
        ).astype(np.float32)
        return gradient

    def _region_sums(self, maps_BKyx: NDArray[np.floating]) -> NDArray[np.float64]:
        """Of each region the sum over its cells and the margin around them, (B, K, R)."""
        total = maps_BKyx.astype(np.float64)
        for axis, length in ((2, self._shape_BCHW[2]), (3, self._shape_BCHW[3])):
            first = np.arange(0, length, self.region)
            stop = np.minimum(first + self.region, length)
            total = range_sums(
                total, axis, first // self.map_stride - self.margin, -(-stop // self.map_stride) + self.margin
            )
        return total.reshape(*total.shape[:2], -1)
