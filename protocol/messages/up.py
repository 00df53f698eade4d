"""Vehicle → cloud, whatever the way of learning."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from protocol.base import Draw, Id, Index, Message, Request, Split, Step, Text, Token, Turned
from protocol.codec.tensor import EncodedTensor
from protocol.plans.adaptation import SubspaceName

LOCAL_HEAD = "local-head"
WHOLE_NETWORK = "whole-network"

LabelMaker = Annotated[str, Meta(pattern=r"^(files|none|others|teacher [0-9a-f]{16})$")]
LabelCounts = Annotated[dict[LabelMaker, Index], Meta(max_length=16)]
"""Number of frames by who has made their label."""


class Hello(Message, frozen=True, array_like=True, kw_only=True, tag="hello"):
    """A vehicle process says that it is there and at no turn; answered by `Welcome` or `Reject`.

    A turn of this vehicle that is under way starts over."""

    vehicle: Id
    session: Token
    """Drawn anew by every vehicle process: a new session means the old process is gone."""
    protocol: int
    encoder: Annotated[str, Meta(max_length=128)]
    bundle_digest: Annotated[str, Meta(max_length=128)]
    feature_shape: tuple[int, int, int]
    """C, H, W of one frame's features."""
    image_size: tuple[int, int]
    """Width, height in pixels of the frames that the encoder sees."""
    label_space: Annotated[str, Meta(max_length=128)]
    frames: dict[Split, Index]
    """Number of frames of each split."""
    frames_digest: Annotated[str, Meta(max_length=64)]
    """Of the frames' keys by split, in their order, and of the classes of their labels."""
    equipment: Annotated[tuple[Annotated[str, Meta(max_length=64)], ...], Meta(max_length=16)] = ()
    """What the vehicle has besides its encoder: `LOCAL_HEAD`, `WHOLE_NETWORK`."""
    subspace: SubspaceName = "all"
    """What of its encoder learns where the run's settings don't say."""
    provider: Annotated[str, Meta(max_length=256)] = ""
    """ONNX Runtime's name of what its encoder runs on, with its options."""
    labels: dict[Split, LabelCounts] = field(default_factory=dict)
    """Who has made the labels of each split's frames (`datasets.label_files`); none = it does not say."""


class OfferedLabel(Message, frozen=True, array_like=True, kw_only=True):
    """A label that the vehicle can send, by what identifies it."""

    index: Index
    """The frame's number on this vehicle, used by queries and uploads from now on."""
    key: Annotated[str, Meta(max_length=256)]
    """The frame's name in its data set."""
    digest: Annotated[bytes, Meta(max_length=32)]
    height: Annotated[int, Meta(ge=1, le=16384)]
    width: Annotated[int, Meta(ge=1, le=16384)]


class LabelOffer(Request, frozen=True, array_like=True, kw_only=True, tag="offer"):
    """Which labels the coming requests refer to; answered by `LabelWant`."""

    answered_by = "LabelWant"

    labels: tuple[OfferedLabel, ...]


class Labels(Request, frozen=True, array_like=True, kw_only=True, tag="labels"):
    """Labels that the cloud asked for, losslessly coded, once; answered by `Ack`."""

    labels: tuple[tuple[OfferedLabel, bytes], ...]


class Upload(Request, frozen=True, array_like=True, kw_only=True, tag="upload"):
    """Features of some frames of a split, sent once and kept for the turn; answered by `Ack`."""

    split: Split
    frames: tuple[Index, ...]
    features: EncodedTensor
    draw: Draw | None = None
    """By which draw of the augmentation the frames were seen; None = as they are."""


class Recall(Turned, frozen=True, array_like=True, kw_only=True, tag="recall"):
    """The request of this step has gone out, and its answer is not here.

    Answered by that answer, by `Resend` or, while the answer is on its way, not at all."""


class Work(Message, frozen=True, array_like=True, kw_only=True):
    """How much a vehicle has computed in a turn."""

    forwards: Step
    """Frames through its encoder."""
    ways_back: Step
    """Frames back through it."""
    forward_equivalents: Annotated[float, Meta(ge=0)] | None
    """Multiply-adds of everything, head and whole network included, in those of one frame's pass through its
    encoder; None = its graphs don't say."""


class TurnDone(Request, frozen=True, array_like=True, kw_only=True, tag="done"):
    """The vehicle has saved its new state; answered by `Ack`, then the cloud learns and commits."""

    loss: float | None
    """Mean loss while learning; None where nothing was learnt."""
    work: Work | None = None
    """In this attempt."""


class TurnFailed(Request, frozen=True, array_like=True, kw_only=True, tag="failed"):
    """The vehicle can't do this turn and says why in one line; answered by `Ack`, then the run stops."""

    reason: Text
