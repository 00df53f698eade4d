"""What others can make happen as often as they like is logged ever more rarely, so that no disk fills up."""

from __future__ import annotations

DEFAULT_FIRST = 100


def is_logged(count: int, *, first: int = DEFAULT_FIRST) -> bool:
    """Whether the `count`-th time is: the `first` ones are, then each power of two."""
    return count <= first or count & (count - 1) == 0
