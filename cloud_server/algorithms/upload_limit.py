"""Which frames of a split are uploaded where not all of them are to be: links cost money."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class UploadLimit:
    """At most so many frames of a split in one turn."""

    most: int
    """1 or more."""
    shift: int = 0
    """How far the choice has moved on: with one more each turn, all frames have their turn."""

    def choose(self, frames: Sequence[int]) -> tuple[int, ...]:
        """`most` frames in even distances, or all if there are no more.

        With a shift that rises by one, ⌈n / most⌉ choices of n frames in a row hold each of them.
        """
        n = len(frames)
        if n <= self.most:
            return tuple(frames)
        return tuple(sorted(frames[(i * n // self.most + self.shift) % n] for i in range(self.most)))
