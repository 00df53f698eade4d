"""What a vehicle calls its frames to the cloud: a name says of which drive and moment one is."""

from __future__ import annotations

from protocol.errors import SettingError

KEYS, NUMBERS = "keys", "numbers"
NAMINGS = (KEYS, NUMBERS)


def check_naming(names: str) -> None:
    """Raise SettingError unless it is one of `NAMINGS`."""
    if names not in NAMINGS:
        raise SettingError(f"names of frames must be one of {', '.join(NAMINGS)}, got {names!r}")


def number_name(index: int) -> str:
    """Of a frame by its number among the vehicle's frames: good for a file name."""
    return f"frame-{index:06d}"
