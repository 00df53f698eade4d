"""Driving with the cloud's network: features of what a vehicle sees now go up, class maps come down.

None of it belongs to a turn, nothing of it is repeated: a frame that is lost is followed by a newer one.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from protocol.base import Id, Index, Message, Side, Step, Token
from protocol.codec.tensor import EncodedTensor
from protocol.plans.coding import Coding

SERVED = "served"
"""In `Hello.equipment` of a vehicle that will ask for class maps."""


class WantServing(Message, frozen=True, array_like=True, kw_only=True, tag="want-serving"):
    """A vehicle asks for class maps; answered by `Serving` or `Reject`."""

    vehicle: Id
    session: Token
    """Of the process that has said hello."""


class Serving(Message, frozen=True, array_like=True, kw_only=True, tag="serving"):
    """The cloud serves this vehicle session from now on."""

    vehicle: Id
    session: Token
    coding: Coding
    """Of the features, as in turns."""


class Seen(Message, frozen=True, array_like=True, kw_only=True, tag="seen"):
    """What a vehicle sees now; answered by `ClassMap` or `Reject`, or never, if a newer one comes before."""

    vehicle: Id
    session: Token
    number: Step
    """Rises in a session; the answer repeats it."""
    features: EncodedTensor
    """(1, C, H, W)."""


class ClassMap(Message, frozen=True, array_like=True, kw_only=True, tag="class-map"):
    """What the network that serves the vehicle makes of a frame."""

    vehicle: Id
    session: Token
    number: Step
    height: Side
    width: Side
    """Of the encoder's input."""
    classes: bytes
    """TrainIds, coded as labels are (`protocol.codec.labels`)."""
    uncertainty: Annotated[float, Meta(ge=0, le=1)]
    """Mean entropy of the predicted classes over all pixels, as a share of the greatest there is."""
    stage: Index
    """How many stages were committed when the network was as it is here."""
