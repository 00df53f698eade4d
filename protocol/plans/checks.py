"""What settings and plans are made of, and how they say what is wrong."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from protocol.errors import SettingError


def at_least(value: float, lowest: float, name: str) -> None:
    """Raise a `SettingError` that names the setting where it is lower."""
    if not value >= lowest:
        raise SettingError(f"{name} must be at least {lowest}, got {value}")


def above(value: float, limit: float, name: str) -> None:
    """Raise a `SettingError` that names the setting where it is not above the limit."""
    if not value > limit:
        raise SettingError(f"{name} must be above {limit}, got {value}")


def one_of(value: object, choices: Iterable[object], name: str) -> None:
    """Raise a `SettingError` that names the setting where it is none of the choices."""
    choices = tuple(choices)
    if value not in choices:
        raise SettingError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Read from and written to JSON; unknown keys are refused."""
