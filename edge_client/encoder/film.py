"""Which part of an encoder's θ learns: all of it, or a scale and a bias of each output channel (FiLM).

θ float32 (n,) all parameters; φ float32 (m,) those that learn; gradients accordingly.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_client.encoder.bundle import EncoderSpec

Vector = NDArray[np.float32]


class Subspace(Protocol):
    """The map φ → θ around one θ₀, and the way back for gradients."""

    size: int
    """m, the length of φ."""

    def theta_of(self, phi: Vector) -> Vector:
        """θ float32 (n,); φ = `start` gives θ₀ to the bit."""
        ...

    def pull_back(self, gradient: Vector) -> Vector:
        """∂L/∂φ float32 (m,) from ∂L/∂θ float32 (n,)."""
        ...

    def start(self) -> Vector:
        """The φ of θ₀."""
        ...


class Everything:
    """φ = θ."""

    def __init__(self, theta: Vector) -> None:
        self.size = theta.size
        self._theta = theta

    def theta_of(self, phi: Vector) -> Vector:
        return phi

    def pull_back(self, gradient: Vector) -> Vector:
        return gradient

    def start(self) -> Vector:
        return self._theta


class Film:
    """A scale and a shift of each output channel: w = (1 + φ_scale)·w₀, b = b₀ + φ_shift.

    φ holds one number for each output channel of each parameter, in the order of θ: for a weight its scale
    less one, for a bias its shift; φ = 0 is θ₀. The map is affine: the way back does not depend on φ.

    Args:
        spec: says where in θ the channels of each parameter lie.
        theta: θ₀ float32 (n,).
    """

    def __init__(self, spec: EncoderSpec, theta: Vector) -> None:
        channels = [parameter.shape[0] for parameter in spec.parameters]
        self.size = sum(channels)
        self._theta = theta
        sizes = np.repeat([parameter.size // parameter.shape[0] for parameter in spec.parameters], channels)
        self._channel_of = np.repeat(np.arange(self.size), sizes)
        """For each element of θ its element of φ."""
        is_weight = np.repeat([parameter.kind == "weight" for parameter in spec.parameters], channels)
        self._slope = np.where(is_weight[self._channel_of], theta, np.float32(1)).astype(np.float32)
        """∂θ/∂φ of each element of θ and its φ."""

    def theta_of(self, phi: Vector) -> Vector:
        moved: Vector = self._theta + self._slope * phi[self._channel_of]
        return moved

    def pull_back(self, gradient: Vector) -> Vector:
        products = self._slope.astype(np.float64) * gradient
        return np.bincount(self._channel_of, products, self.size).astype(np.float32)

    def start(self) -> Vector:
        return np.zeros(self.size, np.float32)
