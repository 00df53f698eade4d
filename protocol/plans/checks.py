"""What settings and plans are made of, and how they say what is wrong."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


def at_least(value: float, lowest: float, name: str) -> None:
    """Raise a `ValueError` that names the setting where it is lower."""
    if not value >= lowest:
        raise ValueError(f"{name} must be at least {lowest}, got {value}")


def above(value: float, limit: float, name: str) -> None:
    """Raise a `ValueError` that names the setting where it is not above the limit."""
    if not value > limit:
        raise ValueError(f"{name} must be above {limit}, got {value}")


def one_of(value: object, choices: Iterable[object], name: str) -> None:
    """Raise a `ValueError` that names the setting where it is none of the choices."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Read from and written to JSON; unknown keys are refused."""
