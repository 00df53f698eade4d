"""A head on the vehicle that is aligned with the cloud's gradients: what is settled and said for it."""

from __future__ import annotations

from protocol.base import Draw, Index, Request
from protocol.codec.tensor import BITS, EncodedTensor
from protocol.plans.checks import Plan


class FslSagePlan(Plan, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="fsl_sage"):
    """How vehicles learn with a head that estimates the cloud's gradient at their features (`fsl-sage`).

    Passes, batch size and schedule are those of `first_order`."""

    section = "fsl_sage"

    rate: float = 2e-3
    """Adam's step size on the encoder at its highest."""
    head_rate: float = 5e-3
    """Adam's step size on the head at its highest, where it learns from labels."""
    upload_every: int = 5
    """h: every h-th batch of a turn is uploaded as it was learnt from, one batch at least."""
    align_every: int = 1
    """Rounds from one alignment of the heads to the next; the first is in round 2."""
    align_batches: int = 4
    """Batches of the vehicle whose gradients are fetched for an alignment, at most."""
    fit_passes: int = 10
    """Passes of Adam over them."""
    fit_rate: float = 3e-3
    """Step size of that Adam."""
    gradient_bits: int = 32
    """Quantisation of the gradients: 32, 8, 6, 4, 3 or 2 bits an element."""
    first_by_labels: bool = True
    """In round 1, before there is a network to align with, heads learn from their vehicles' labels; false =
    they stay as they start."""

    def __post_init__(self) -> None:
        self._above(0, "rate", "head_rate", "fit_rate")
        self._at_least(1, "upload_every", "align_every")
        self._at_least(0, "align_batches", "fit_passes")
        self._one_of(BITS, "gradient_bits")


class AskGradient(Request, frozen=True, array_like=True, kw_only=True, tag="ask-gradient"):
    """What is the gradient of the cloud's loss at these features? It learns nothing by it; answered by
    `Gradient`."""

    answered_by = "Gradient"

    frames: tuple[Index, ...]
    features: EncodedTensor
    draw: Draw | None = None
    """By which draw of the augmentation the frames were seen; None = as they are."""
