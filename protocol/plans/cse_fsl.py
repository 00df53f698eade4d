"""A local loss on the vehicle and rare uploads: what is settled and said for it."""

from __future__ import annotations

from protocol.base import Draw, Index, Request
from protocol.codec.tensor import EncodedTensor
from protocol.plans.checks import Plan


class CseFslPlan(Plan, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="cse_fsl"):
    """How vehicles learn with a local head, uploading the features of few batches (`cse-fsl`).

    Passes, batch size and schedule are those of `first_order`."""

    section = "cse_fsl"

    rate: float = 2e-3
    """Adam's step size on the encoder at its highest."""
    head_rate: float = 5e-3
    """Adam's step size on the head at its highest."""
    upload_every: int = 5
    """h: every h-th batch of a turn is uploaded as it was learnt from, one batch at least."""

    def __post_init__(self) -> None:
        self._above(0, "rate", "head_rate")
        self._at_least(1, "upload_every")


class Smashed(Request, frozen=True, array_like=True, kw_only=True, tag="smashed"):
    """Features of a batch of train frames, as they are while the encoder learns, for the cloud to learn from
    after the stage; answered by `Ack`. ("Smashed data" is what split learning calls them.)"""

    frames: tuple[Index, ...]
    features: EncodedTensor
    draw: Draw | None = None
    """By which draw of the augmentation the frames were seen; None = as they are."""


def uploaded_batches(batches: int, every: int) -> range:
    """Which of a turn's batches, counted from 0, are uploaded: each `every`-th, or else the last."""
    return range(min(every, batches) - 1, batches, every) if batches else range(0)
