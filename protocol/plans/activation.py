"""Perturbed features and loss maps: how a vehicle learns from them, and what is said for it.

Legend: B frames of a batch.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from protocol.base import Index, Message, Objective, Seed, Subspace, Turned
from protocol.codec.tensor import EncodedTensor

MOST_SEEDS = 1024
"""Of one query."""


class ActivationPlan(Message, frozen=True, array_like=True, kw_only=True, tag="activation"):
    """Zeroth-order settings of learning from loss maps at perturbed features."""

    scale: Annotated[float, Meta(gt=0)]
    """s: how far features are moved for a query, in standard deviations of their channel."""
    seeds: Annotated[int, Meta(ge=1, le=MOST_SEEDS)]
    """K: perturbations averaged for one update."""
    two_sided: bool
    """Differences between +ξ and −ξ, rather than between +ξ and the clean features."""
    map_stride: Annotated[int, Meta(ge=1, le=1024)]
    """Feature cells that a cell of the loss map covers along each side."""
    map_bits: int
    """Quantisation of the loss maps: 32, 8, 6, 4, 3 or 2 bits a cell."""
    box_width: Annotated[int, Meta(ge=1, le=2047)]
    """Side, in cells of the map and odd, of the window whose loss counts for the features in its middle."""
    rate: Annotated[float, Meta(gt=0)]
    """Step size of Adam."""
    subspace: Subspace
    objective: Objective


class SeededQuery(Turned, frozen=True, array_like=True, kw_only=True, tag="seeded"):
    """What are the loss maps at these features and at perturbed ones? Answered by `LossMaps`.

    The features cross the network once, however many seeds there are; changes nothing in the cloud."""

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


class LossMaps(Turned, frozen=True, array_like=True, kw_only=True, tag="maps"):
    """The answer to a seeded query or a fetch of loss maps: losses by place, never gradients."""

    maps: EncodedTensor
    """(B, 1 + K, rows, columns): the map at the clean features, then each seed's difference; fetched: K = 0.

    The mean over the cells of a clean map is the cross-entropy of its frame. Coded as features are, each map
    with a scale of its own over the batch."""
