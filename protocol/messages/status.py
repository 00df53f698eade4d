"""What everyone says of itself."""

from __future__ import annotations

from protocol.base import Id, Index, Message, Token


class Status(Message, frozen=True, array_like=True, kw_only=True, tag="status"):
    """Presence: retained birth (online), last will (offline), heartbeats (online, rising `beat`)."""

    vehicle: Id
    session: Token
    """A late will of an old session can't be mistaken for the end of the new one."""
    online: bool
    beat: Index
