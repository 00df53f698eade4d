"""The way back through an encoder by forward passes alone: its derivative along directions of the weights.

B frames, C channels, H W feature rows and columns; φ float32 (m,) what learns.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edge_client.estimators.orthogonal import orthogonal_signs

Forward = Callable[[NDArray[np.float32], int], NDArray[np.float32]]
"""(φ, number of a frame of the batch) → the frame's features float32 (C, H, W)."""


class ForwardDifferences:
    """The encoder around one φ and one batch: its value, and an estimate of its vector-Jacobian product.

    (∂f/∂φ)ᵀv ≈ 1/N Σ_b Σ_i u_bi·⟨v_b, f(φ + c·u_bi)_b − f(φ)_b⟩/c,  u = ±1 elementwise, other directions for
    each frame b, orthogonal ones. Its expectation is the product up to O(c); with N the power of two not
    below m it is the product itself. Nothing of it is sent. A forward gradient (Baydin et al. 2022, arXiv
    2202.08587), by differences, through the encoder alone.

    Args:
        forward: runs the encoder at other φ.
        phi: φ.
        features_BCHW: float32, there.
        passes: N, forward passes of each frame.
        distance: c, in units of φ.
        seed: of the directions.
    """

    def __init__(
        self,
        forward: Forward,
        phi: NDArray[np.float32],
        features_BCHW: NDArray[np.float32],
        *,
        passes: int,
        distance: float,
        seed: int,
    ) -> None:
        self.features_BCHW = features_BCHW
        self._forward = forward
        self._phi = phi
        self._passes = passes
        self._distance = np.float32(distance)
        self._seed = seed

    def pull_back(self, v_BCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        """The gradient of ⟨features, v⟩ for φ, float32 (m,), estimated by N forward passes of each frame."""
        frames = len(self.features_BCHW)
        directions = orthogonal_signs(self._seed, frames * self._passes, self._phi.size)
        slopes = np.empty(len(directions), np.float64)
        for number, direction in enumerate(directions):
            frame = number // self._passes
            moved_CHW = self._forward(self._phi + self._distance * direction, frame)
            difference_CHW = moved_CHW - self.features_BCHW[frame]
            slopes[number] = np.vdot(v_BCHW[frame].astype(np.float64), difference_CHW)
        weight = 1 / (self._passes * float(self._distance))
        gradient: NDArray[np.float32] = ((weight * slopes).astype(np.float32) @ directions).astype(np.float32)
        return gradient
