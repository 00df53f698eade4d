"""Perturbed features and loss maps: how a vehicle learns from them, and what is said for it.

Legend: B frames of a batch.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from protocol.base import Answer, Draw, Index, Request, Seed
from protocol.codec.tensor import BITS, EncodedTensor
from protocol.errors import SettingError
from protocol.plans.checks import EstimatorPlan

MOST_SEEDS = 1024
"""Of one query."""


class ActivationPlan(EstimatorPlan, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="activation"):
    """Features are perturbed, loss maps come back, Adam takes the steps."""

    section = "activation"
    estimator = "activation"

    scale: float = 0.1
    """s: how far features are moved for a query, in standard deviations of their channel."""
    seeds: int = 16
    """K: perturbations averaged for one update; the features cross the network once for all of them."""
    two_sided: bool = False
    """Differences between +ξ and −ξ, rather than between +ξ and the clean features: less noise, twice the
    cloud's work, the same bytes."""
    map_stride: int = 1
    """Feature cells that a cell of the loss map covers along each side; must divide the feature map."""
    map_bits: int = 8
    """Quantisation of the loss maps: 32, 8, 6, 4, 3 or 2 bits a cell."""
    box_width: int = 5
    """Side, in cells of the map and odd, of the window whose loss counts for the features in its middle."""
    rate: float = 1e-3
    """Step size of Adam."""

    def __post_init__(self) -> None:
        self._above(0, "scale", "rate")
        self._at_least(1, "seeds", "map_stride")
        self._at_most(MOST_SEEDS, "seeds")
        self._one_of(BITS, "map_bits")
        if self.box_width < 1 or self.box_width % 2 == 0:
            raise SettingError(f"{self.key('box_width')} must be odd and at least 1, got {self.box_width}")

    @property
    def answers_per_frame(self) -> int:
        return 1 + self.seeds


class SeededQuery(Request, frozen=True, array_like=True, kw_only=True, tag="seeded"):
    """What are the loss maps at these features and at perturbed ones? Answered by `LossMaps`.

    The features cross the network once, however many seeds there are; changes nothing in the cloud."""

    answered_by = "LossMaps"

    frames: tuple[Index, ...]
    features: EncodedTensor
    seeds: Annotated[tuple[Seed, ...], Meta(max_length=MOST_SEEDS)]
    """Of the perturbations ξ (`protocol.perturbation`)."""
    scale: bytes
    """float32[C], little endian: how far each channel is moved."""
    two_sided: bool
    """Ask for ℓ(z + scale·ξ) − ℓ(z − scale·ξ), else for ℓ(z + scale·ξ) − ℓ(z)."""
    map_size: tuple[int, int]
    """Rows and columns of the maps."""
    draw: Draw | None = None
    """By which draw of the augmentation the frames were seen; None = as they are."""


class LossMaps(Answer, frozen=True, array_like=True, kw_only=True, tag="maps"):
    """The answer to a seeded query or a fetch of loss maps: losses by place, never gradients."""

    maps: EncodedTensor
    """(B, 1 + K, rows, columns): the map at the clean features, then each seed's difference; fetched: K = 0.

    The mean over the cells of a clean map is the cross-entropy of its frame. Coded as features are, each map
    with a scale of its own over the batch."""
