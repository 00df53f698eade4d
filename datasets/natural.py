"""Names in the order that people mean: frame2 before frame10."""

from __future__ import annotations

import re
from typing import TypeAlias

NaturalKey: TypeAlias = tuple[tuple[str | int, ...], str]

_NUMBER = re.compile(r"([0-9]+)")


def natural_key(name: str) -> NaturalKey:
    """What to sort a name by: its numbers as numbers, the rest as text.

    Names whose numbers have leading zeros up to one width sort as text does.
    """
    # Text and numbers take turns, beginning with text, so that like is always compared with like.
    pieces = _NUMBER.split(name)
    return tuple(int(piece) if index % 2 else piece for index, piece in enumerate(pieces)), name
