"""How often vehicles that drive were served, and what that has cost."""

from __future__ import annotations

import msgspec


class ServedCounts(msgspec.Struct, kw_only=True):
    """Of one vehicle; counted by the thread that serves, read by others."""

    frames: int = 0
    """Class maps that were sent."""
    dropped: int = 0
    """Frames that a newer one has replaced before their turn came."""
    refused: int = 0
    uplink_bytes: int = 0
    """PUBLISH bytes of what the vehicle has sent for it."""
    downlink_bytes: int = 0
    """PUBLISH bytes of the answers."""
