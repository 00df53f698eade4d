"""How many of a fleet's vehicles take part in a round, as a person says it."""

from __future__ import annotations

from protocol.errors import SettingError

ALL = "all"

Participation = str | int | float
"""`all`, a number of vehicles, or a share of them below 1."""


def drawn_of(participation: Participation, vehicles: int) -> int:
    """How many of so many vehicles are drawn for a round; a share is of one vehicle at least.

    Raises:
        SettingError: it is none of the three.
    """
    if participation == ALL:
        return vehicles
    try:
        text = str(participation)
        count = int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        raise _refusal(participation) from None
    if isinstance(count, int):
        if count < 1:
            raise _refusal(participation)
        return count
    if not 0 < count < 1:
        raise _refusal(participation)
    return max(1, round(count * vehicles))


def _refusal(participation: Participation) -> SettingError:
    return SettingError(
        f"participation must be {ALL}, a number of vehicles from 1 such as 200, or a share of them above 0 "
        f"and below 1 such as 0.2, got {participation!r}"
    )
