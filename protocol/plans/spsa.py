"""BlackFed's SPSA-GC: how a vehicle learns from losses at other weights, and what is said for it."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from protocol.base import Index, Message, Objective, Subspace, Turned
from protocol.codec.tensor import EncodedTensor


class SpsaPlan(Message, frozen=True, array_like=True, kw_only=True, tag="spsa-gc"):
    """Zeroth-order settings of BlackFed's SPSA-GC (arXiv 2410.24181, section 3.2)."""

    perturbation: float
    """c: how far θ is moved for a query."""
    queries: Annotated[int, Meta(ge=1, le=1024)]
    """q: two-sided queries averaged for one update."""
    rate: float
    """Step size of the update."""
    momentum: float
    """β of the Nesterov momentum, kept across epochs and turns."""
    subspace: Subspace
    objective: Objective


class Query(Turned, frozen=True, array_like=True, kw_only=True, tag="query"):
    """What is the loss at these features? Answered by `Feedback`; changes nothing in the cloud."""

    frames: tuple[Index, ...]
    features: EncodedTensor


class Feedback(Turned, frozen=True, array_like=True, kw_only=True, tag="feedback"):
    """The answer to a query: losses, never gradients."""

    losses: tuple[float, ...]
