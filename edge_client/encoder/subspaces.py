"""Which part of an encoder's θ learns: all, scales and biases of channels (FiLM), its projection, or both.

θ float32 (n,) all parameters; φ float32 (m,) those that learn; gradients accordingly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_client.encoder.bundle import EncoderSpec, ParameterSpec
from protocol.errors import SettingError

Vector = NDArray[np.float32]
How = Literal["free", "by channel"]
"""How a parameter learns: each of its elements, or one number for each output channel."""
SMALLEST_SCALE = 0.05
"""Below it, dividing by a channel's scale would lose too many digits."""


def check_subspace(subspace: str, projection: Sequence[str], *, encoder: str) -> None:
    """Refuse a subspace that an encoder does not have, in the words of the setting.

    Raises:
        SettingError: it has no projection.
    """
    if "projection" in subspace and not projection:
        raise SettingError(
            f"encoder {encoder} has no projection: adaptation.subspace must be all or film, got {subspace}"
        )


def learning(
    subspace: str, parameters: Sequence[ParameterSpec], projection: Sequence[str]
) -> list[tuple[ParameterSpec, How]]:
    """What of θ learns in a subspace, and how, in the order of θ.

    Args:
        projection: names of the parameters of the encoder's projection.
    """
    ways: dict[str, tuple[How | None, How | None]] = {  # of the projection, of all others
        "all": ("free", "free"),
        "film": ("by channel", "by channel"),
        "projection": ("free", None),
        "projection+film": ("free", "by channel"),
    }
    of_projection, of_others = ways[subspace]
    found = []
    for parameter in parameters:
        how = of_projection if parameter.name in projection else of_others
        if how is not None:
            found.append((parameter, how))
    return found


class Subspace(Protocol):
    """The map φ → θ around one θ₀, and the way back for gradients."""

    name: str
    """Of `protocol.plans.adaptation.SUBSPACES`."""
    size: int
    """m, the length of φ."""

    def theta_of(self, phi: Vector) -> Vector:
        """θ float32 (n,); φ = `start` gives θ₀ to the bit."""
        ...

    def pull_back(self, gradient: Vector) -> Vector:
        """∂L/∂φ float32 (m,) from ∂L/∂θ float32 (n,)."""
        ...

    def scale_of(self, theta: Vector) -> Vector | None:
        """What the subspace's own graph is to be divided by at a θ of the subspace, float32 (m,): it gives
        Σ ∂L/∂w·w of a channel, where ∂L/∂φ is Σ ∂L/∂w·w₀. None where that would lose too many digits."""
        ...

    def start(self) -> Vector:
        """The φ of θ₀."""
        ...


class Everything:
    """φ = θ."""

    name = "all"

    def __init__(self, theta: Vector) -> None:
        self.size = theta.size
        self._theta = theta

    def theta_of(self, phi: Vector) -> Vector:
        return phi

    def pull_back(self, gradient: Vector) -> Vector:
        return gradient

    def scale_of(self, theta: Vector) -> Vector | None:
        return np.ones(1, np.float32)

    def start(self) -> Vector:
        return self._theta


class Part:
    """Some of θ learns, relative to θ₀; the rest never moves. φ = 0 is θ₀.

    A parameter that learns by channel has one number of φ for each output channel: of a weight the scale less
    one, w = (1 + φ)·w₀, of a bias the shift, b = b₀ + φ. One that learns freely has a number for each
    element, w = w₀ + φ. φ is in the order of θ. The map is affine: its derivative does not depend on φ.

    Args:
        name: the subspace.
        spec: says where in θ the channels of each parameter lie, and what its projection is.
        theta: θ₀ float32 (n,).

    Raises:
        SettingError: see `check_subspace`.
    """

    def __init__(self, name: str, spec: EncoderSpec, theta: Vector) -> None:
        check_subspace(name, spec.projection, encoder=spec.name)
        self.name = name
        self._theta = theta
        places, coordinates, slopes, leads, scaled = [], [], [], [], []
        size = 0
        for parameter, how in learning(name, spec.parameters, spec.projection):
            count = parameter.size if how == "free" else parameter.shape[0]
            place = parameter.offset + np.arange(parameter.size)
            scales = how == "by channel" and parameter.kind == "weight"
            values = theta[place]
            by_channel = np.abs(values).reshape(count, -1)
            places.append(place)
            coordinates.append(size + np.repeat(np.arange(count), parameter.size // count))
            slopes.append(values if scales else np.ones_like(values))
            leads.append(place.reshape(count, -1)[np.arange(count), by_channel.argmax(1)])
            scaled.append(np.full(count, scales) & (by_channel.max(1) > 0))
            size += count
        self.size = size
        self._place = np.concatenate(places)
        """Of each element of θ that learns."""
        self._coordinate = np.concatenate(coordinates)
        """Its element of φ."""
        self._slope = np.concatenate(slopes)
        """Its ∂θ/∂φ."""
        is_scaled = np.concatenate(scaled)
        self._scaled = np.flatnonzero(is_scaled)
        """The elements of φ that are scales of weights."""
        self._lead = np.concatenate(leads)[is_scaled]
        """Where in θ each of these channels has its largest weight."""

    def theta_of(self, phi: Vector) -> Vector:
        theta = self._theta.copy()
        theta[self._place] += self._slope * phi[self._coordinate]
        return theta

    def pull_back(self, gradient: Vector) -> Vector:
        products = self._slope.astype(np.float64) * gradient[self._place]
        return np.bincount(self._coordinate, products, self.size).astype(np.float32)

    def scale_of(self, theta: Vector) -> Vector | None:
        scale = np.ones(self.size, np.float32)
        scale[self._scaled] = theta[self._lead] / self._theta[self._lead]
        return scale if np.abs(scale).min() >= SMALLEST_SCALE else None

    def start(self) -> Vector:
        return np.zeros(self.size, np.float32)


def subspace_of(name: str, spec: EncoderSpec, theta: Vector) -> Subspace:
    """The subspace of an encoder around θ₀ float32 (n,).

    Raises:
        SettingError: see `check_subspace`.
    """
    return Everything(theta) if name == "all" else Part(name, spec, theta)
