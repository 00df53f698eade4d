"""Numbers as the text that people read in a report; what is not known is a dash."""

from __future__ import annotations

from fleet.report.data import Spread
from fleet.show.progress import format_bytes

NONE = "–"


def css(color_rgb: tuple[int, int, int]) -> str:
    return f"#{bytes(color_rgb).hex()}"


def spread(value: Spread | None) -> str:
    if value is None:
        return NONE
    return f"{value.mean:.3f} ± {value.deviation:.3f}" if value.deviation else f"{value.mean:.3f}"


def score(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def byte_count(value: float | None) -> str:
    return NONE if value is None else format_bytes(value)


def whole(value: float | None) -> str:
    return NONE if value is None else f"{round(value):,}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
