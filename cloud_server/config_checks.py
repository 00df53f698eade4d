"""What all parts of the cloud's settings are made of, and how they say what is wrong."""

from __future__ import annotations

import msgspec


def at_least(value: float, lowest: float, name: str) -> None:
    if not value >= lowest:
        raise ValueError(f"{name} must be at least {lowest}, got {value}")


def one_of(value: str, choices: tuple[str, ...], name: str) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def above(value: float, limit: float, name: str) -> None:
    if not value > limit:
        raise ValueError(f"{name} must be above {limit}, got {value}")


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Read from and written to JSON; unknown keys are refused."""
