"""White-box split learning: the cloud answers with gradients of the features.

Legend: B frames of a batch, C channels, H W feature rows and columns.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from protocol.base import Index, Message, Objective, Subspace, Turned
from protocol.codec.tensor import EncodedTensor


class WhiteBoxPlan(Message, frozen=True, array_like=True, kw_only=True, tag="white-box"):
    """First-order settings of white-box split learning: the cloud answers with gradients of the features."""

    rate: Annotated[float, Meta(gt=0)]
    """Highest step size of Adam on the encoder; each gradient says which share of it counts."""
    gradient_bits: int
    """Quantisation of the gradients: 32, 8, 6, 4, 3 or 2 bits an element."""
    subspace: Subspace
    objective: Objective


class TrainStep(Turned, frozen=True, array_like=True, kw_only=True, tag="train"):
    """Features of a batch to learn from at once, in the cloud and here; answered by `Gradient`."""

    frames: tuple[Index, ...]
    features: EncodedTensor


class Gradient(Turned, frozen=True, array_like=True, kw_only=True, tag="gradient"):
    """The answer to a training step of white-box learning, and of no other way to learn."""

    loss: float
    """Of the batch, before the cloud's step."""
    rate_share: Annotated[float, Meta(ge=0, le=1)]
    """Where the rate schedule stands: the share of the highest rate that this step is to be taken with."""
    gradient: EncodedTensor
    """∂loss/∂features (B, C, H, W) at the features as they arrived, before the cloud's step."""
