"""White-box split learning: the cloud answers with gradients of the features.

Legend: B frames of a batch, C channels, H W feature rows and columns.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from protocol.base import Answer, Draw, Index, Request
from protocol.codec.tensor import BITS, EncodedTensor
from protocol.plans.checks import Plan


class WhiteBoxPlan(Plan, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="white_box"):
    """How vehicles learn from the gradients of their features (`split`, `individual`)."""

    section = "white_box"

    rate: float = 1e-3
    """Adam's step size on the encoder at its highest; it follows `first_order.schedule`, and each gradient
    says which share of it counts."""
    gradient_bits: int = 32
    """Quantisation of the gradients: 32, 8, 6, 4, 3 or 2 bits an element."""

    def __post_init__(self) -> None:
        self._above(0, "rate")
        self._one_of(BITS, "gradient_bits")


class TrainStep(Request, frozen=True, array_like=True, kw_only=True, tag="train"):
    """Features of a batch to learn from at once, in the cloud and here; answered by `Gradient`."""

    answered_by = "Gradient"

    frames: tuple[Index, ...]
    features: EncodedTensor
    draw: Draw | None = None
    """By which draw of the augmentation the frames were seen; None = as they are."""


class Gradient(Answer, frozen=True, array_like=True, kw_only=True, tag="gradient"):
    """The answer to a training step of white-box learning, and of no other way to learn."""

    loss: float
    """Of the batch, before the cloud's step."""
    rate_share: Annotated[float, Meta(ge=0, le=1)]
    """Where the rate schedule stands: the share of the highest rate that this step is to be taken with."""
    gradient: EncodedTensor
    """∂loss/∂features (B, C, H, W) at the features as they arrived, before the cloud's step."""
