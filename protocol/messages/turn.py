"""A turn: what a vehicle is to do, and with which plan."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from protocol.base import EPOCHS_LIMIT, Index, Seed, Side, Split, Turned
from protocol.plans import Learner


class Turn(Turned, frozen=True, array_like=True, kw_only=True, tag="turn"):
    """Cloud → vehicle: it is yours. Learn as told, then upload the named splits once."""

    after_turn: Index | None
    """The vehicle's latest turn that the cloud has committed: start from the state after it; None = from
    the bundle."""
    seed: Seed
    learner: Learner | None
    """How the encoder learns; None leaves it as it is."""
    epochs: Annotated[int, Meta(ge=0, le=EPOCHS_LIMIT)]
    """Passes over the train frames while learning."""
    batches: Annotated[int, Meta(ge=0)]
    """At most so many batches an epoch; 0 = all of them."""
    batch_size: Annotated[int, Meta(ge=1, le=4096)]
    uploads: tuple[Split, ...]
    """Splits whose features the vehicle uploads once, in this order, after learning."""
    bits: int
    """Quantisation of the features: 32, 8, 6, 4, 3 or 2 bits an element."""
    frame_bytes: Annotated[int, Meta(ge=1)] | None = None
    """Most bytes of a frame's features: each channel gets as many bits as fit, `bits` at most; None = all get
    `bits`."""
    upload_frames: dict[Split, tuple[Index, ...]] = msgspec.field(default_factory=dict)
    """The frames that are wanted of a split of `uploads`; all of one that isn't named."""
    train_label_size: tuple[Side, Side] | None = None
    """Rows and columns that labels of train frames are to be reduced to, by the pixel nearest to each cell's
    centre; None = they are of the size of the encoder's input."""
    anchor: Annotated[float, Meta(ge=0)] = 0.0
    """λ: λ/2·‖φ − φ_start‖² is added to what the encoder learns from, φ_start being the bundle's."""
