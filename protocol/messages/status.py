"""What everyone says of itself."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from protocol.base import DEFAULT_LIMIT_BYTES, Id, Index, Message, Token

Rate = Annotated[float, Meta(ge=0, le=10_000)]
"""Times a second."""


class Health(Message, frozen=True, array_like=True, kw_only=True):
    """How a sender's machine is, for people to see. None: it does not tell."""

    temperature_c: Annotated[int, Meta(ge=-100, le=300)] | None = None
    """Of its hottest part."""
    is_throttled: bool | None = None
    """Whether heat or current slows it down."""
    power_mode: Annotated[str, Meta(pattern=r"^[A-Za-z0-9 _.-]{1,32}$")] | None = None
    free_memory_mb: Index | None = None
    free_disk_mb: Index | None = None
    """In the folder of what it learns."""
    is_paused: bool = False
    """Whether the car does not allow it to work now. The time of a turn stands still meanwhile; nothing else
    is decided by what is said here."""
    camera_hz: Rate | None = None
    """Frames that its camera gives."""
    camera_dropped: Index | None = None
    """Those that nobody has looked at, because newer ones were there."""
    served_hz: Rate | None = None
    """Class maps of what the camera sees."""
    served_ms: Index | None = None
    """How old a frame is when its class map is there: of 95 in 100 at most so much."""


class Status(Message, frozen=True, array_like=True, kw_only=True, tag="status"):
    """Presence: retained birth (online), last will (offline), heartbeats (online, rising `beat`)."""

    vehicle: Id
    session: Token
    """A late will of an old session can't be mistaken for the end of the new one."""
    online: bool
    beat: Index
    limit_bytes: Annotated[int, Meta(ge=1)] = DEFAULT_LIMIT_BYTES
    """The largest message that the sender takes."""
    round_trip_ms: Index | None = None
    """Between the sender and the broker: the latest of a small packet that nothing was ahead of; None: not
    measured yet."""
    reconnects: Index = 0
    """Sessions with the broker after the first one."""
    health: Health | None = None
    """None: it does not tell."""
    certificate_days: Index | None = None
    """Until the sender's certificate ends (0: today, or over), where that is fewer than 30; None: it is far
    off, or there is none."""
