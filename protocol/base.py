"""What all that crosses the network is made of: identities, ranges, and the kinds of message."""

from __future__ import annotations

from typing import Annotated, ClassVar, TypedDict

import msgspec
from msgspec import Meta

PROTOCOL_VERSION = 8
EPOCHS_LIMIT = 10_000
"""Of one turn."""

DEFAULT_LIMIT_BYTES = 64 * 1024 * 1024
"""The largest message that is taken, where nothing else is announced."""

Id = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Token = Annotated[str, Meta(pattern=r"^[0-9a-f]{8,32}$")]
Index = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Step = Annotated[int, Meta(ge=0, le=2**53)]
Side = Annotated[int, Meta(ge=1, le=2**16)]
Seed = Annotated[int, Meta(ge=0)]
Draw = Annotated[int, Meta(ge=0, le=EPOCHS_LIMIT)]
"""Of the turn's augmentation."""
Text = Annotated[str, Meta(max_length=1024)]
Split = Annotated[str, Meta(pattern=r"^(train|val|test|ood|source|fleet)$")]

SPLITS = ("train", "val", "test", "ood", "source", "fleet")
"""Of a vehicle's frames; `fleet`: the data set's test split, on which all are scored alike."""


class Message(msgspec.Struct, frozen=True, array_like=True, kw_only=True, forbid_unknown_fields=True):
    """Encoded as a MessagePack array `[tag, fields…]`: no field names on the wire."""


class Turned(Message, frozen=True, array_like=True, kw_only=True, forbid_unknown_fields=True):
    """What belongs to one attempt at one turn."""

    vehicle: Id
    grant: Token
    """Names the attempt; drawn by the cloud each time it (re)starts the turn."""
    turn_id: Index
    step: Step
    """Counts the vehicle's requests within the turn from 0; an answer repeats the request's."""


class Request(Turned, frozen=True, array_like=True, kw_only=True, forbid_unknown_fields=True):
    """Vehicle → cloud, inside a turn: has exactly one answer."""

    answered_by: ClassVar[str] = "Ack"
    """Name of the `Answer` class; another answer to this request is not heeded."""


class Answer(Turned, frozen=True, array_like=True, kw_only=True, forbid_unknown_fields=True):
    """Cloud → vehicle: to the request with the same four fields."""


class RequestIdentity(TypedDict):
    """The four fields of `Turned`, as a request hands them on to its answer."""

    vehicle: str
    grant: str
    turn_id: int
    step: int
