"""Perturbed features and loss maps: how a vehicle learns from them, and what is said for it.

Legend: B frames of a batch.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from protocol.base import Answer, Draw, Index, Request, Seed
from protocol.codec.tensor import EncodedTensor
from protocol.plans.checks import LARGEST_BLOCK, MOST_SEEDS, LossMapPlan


class ActivationPlan(LossMapPlan, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="activation"):
    """Features are perturbed, loss maps come back, Adam takes the steps."""

    section = "activation"
    estimator = "activation"


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
    block: Annotated[int, Meta(ge=1, le=LARGEST_BLOCK)] = 1
    """Features along each side of the squares on which ξ is constant."""


class LossMaps(Answer, frozen=True, array_like=True, kw_only=True, tag="maps"):
    """The answer to a seeded query or a fetch of loss maps: losses by place, never gradients."""

    maps: EncodedTensor
    """(B, 1 + K, rows, columns): the map at the clean features, then each seed's difference; fetched: K = 0.

    The mean over the cells of a clean map is the cross-entropy of its frame. Coded as features are, each map
    with a scale of its own over the batch."""
