"""Who of a fleet takes part in a round, and when a round is over, as a person says it."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.errors import SettingError

ALL = "all"
_FIRST, _ASYNC = "first:", "async:"

Participation = str | int | float
"""`all`, a number of vehicles, a share of them below 1, `first:M/N`, or `async:K`."""


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """What a `Participation` comes to in a fleet of some size."""

    drawn: int
    """Vehicles that begin a round."""
    enough: int | None = None
    """A round is over when so many of them have finished; None = when all have."""
    buffer: int | None = None
    """Nobody waits for a round: so many contributions make one; None = rounds have a beginning and an end."""


def rounds_of(participation: Participation, vehicles: int) -> Rounds:
    """What it comes to with so many vehicles; a share is of one vehicle at least.

    Raises:
        SettingError: it is none of those.
    """
    text = str(participation)
    if text == ALL:
        return Rounds(drawn=vehicles)
    if text.startswith(_ASYNC):
        return Rounds(drawn=vehicles, buffer=_count(text.removeprefix(_ASYNC), vehicles, participation))
    if text.startswith(_FIRST):
        enough, slash, drawn = text.removeprefix(_FIRST).partition("/")
        return Rounds(
            drawn=_count(drawn, vehicles, participation) if slash else vehicles,
            enough=_count(enough, vehicles, participation),
        )
    return Rounds(drawn=_count(text, vehicles, participation))


def drawn_of(participation: Participation, vehicles: int) -> int:
    """How many of so many vehicles are drawn for a round.

    Raises:
        SettingError: see `rounds_of`.
    """
    return rounds_of(participation, vehicles).drawn


def _count(text: str, vehicles: int, said: Participation) -> int:
    """A number, or a share of the vehicles."""
    try:
        count = int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        raise _refusal(said) from None
    if isinstance(count, int):
        if count < 1:
            raise _refusal(said)
        return count
    if not 0 < count < 1:
        raise _refusal(said)
    return max(1, round(count * vehicles))


def _refusal(participation: Participation) -> SettingError:
    return SettingError(
        f"participation must be {ALL}, a number of vehicles from 1 such as 200, a share of them above 0 and "
        f"below 1 such as 0.2, first:M/N (N are drawn, M have to finish) such as first:8/10, or async:K "
        f"(rounds of K contributions) such as async:10, got {participation!r}"
    )
