"""Learning from the vehicle's own labels with its local head, weighted by where the cloud's loss lay."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from protocol.base import EPOCHS_LIMIT, Index, Message, Subspace, Turned


class LossWeighting(Message, frozen=True, array_like=True, kw_only=True):
    """How a vehicle weights the pixels of its local loss by the cloud's loss maps."""

    map_stride: Annotated[int, Meta(ge=1, le=1024)]
    """Feature cells that a cell of the loss maps covers along each side."""
    power: Annotated[float, Meta(gt=0)]
    """p of the weight min(ℓ / mean ℓ, cap)^p."""
    cap: Annotated[float, Meta(ge=1)]
    """Share of the mean loss above which a loss counts no more."""
    frames: tuple[Index, ...] = ()
    """Train frames that have loss maps, as they were uploaded; the pixels of others weigh 1. Empty = all."""


class LocalLossPlan(Message, frozen=True, array_like=True, kw_only=True, tag="local-loss"):
    """Settings of learning from the vehicle's own labels with its local head."""

    rate: Annotated[float, Meta(gt=0)]
    """Highest step size of Adam on the encoder."""
    head_rate: Annotated[float, Meta(gt=0)]
    """Highest step size of Adam on the head."""
    rate_shares: Annotated[tuple[Annotated[float, Meta(gt=0, le=1)], ...], Meta(max_length=EPOCHS_LIMIT)]
    """Share of the highest rates in each of the turn's epochs."""
    weighting: LossWeighting | None
    """With it, the vehicle first fetches the loss maps of its train frames; None: nobody is asked."""
    subspace: Subspace


class FetchLossMaps(Turned, frozen=True, array_like=True, kw_only=True, tag="fetch-maps"):
    """Where did the loss lie in some train frames after the latest learning? Answered by `LossMaps`."""

    frames: tuple[Index, ...]
    """A batch as it was uploaded."""
