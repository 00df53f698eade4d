"""Cloud → whoever may look on: what happens in the run, as the lines of its log."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from protocol.base import Id, Index, Message, Step, Token

PlainBytes = Annotated[int, Meta(ge=0, le=16 * 1024 * 1024)]
"""Of lines before they are deflated."""


class Happened(Message, frozen=True, array_like=True, kw_only=True, tag="happened"):
    """What has just happened."""

    vehicle: Id
    """The cloud's."""
    session: Token
    first: Step
    """Number of the first line; a session numbers its lines from 0 without a gap."""
    plain_bytes: PlainBytes
    lines: bytes
    """JSON objects, a line each, deflated (`protocol.codec.lines`)."""


class Past(Message, frozen=True, array_like=True, kw_only=True, tag="past"):
    """A part of what has happened so far, for whoever has come late or missed something."""

    vehicle: Id
    session: Token
    upto: Step
    """All lines below this number are told, as far as they still matter."""
    part: Index
    parts: Index
    numbers: tuple[Step, ...]
    """Of the lines, rising."""
    plain_bytes: PlainBytes
    lines: bytes
