"""What becomes of the train frames that vehicles upload: acknowledged at the desk, trained on by the trainer.

The two sides are counted apart, each where it happens, so that the counts can contradict each other.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable

import msgspec


class UploadCounts(msgspec.Struct, kw_only=True):
    """Train frames of one vehicle whose features came in `Upload`s, as often as they came.

    All but `discarded` are of committed stages, and exact whatever was killed.
    """

    acknowledged: int = 0
    """Frames of acknowledged uploads, in turns that were finished."""
    trained: int = 0
    """Those of them that were in every first-order pass of their stage."""
    passes: int = 0
    """Frames of all first-order passes together, each as often as a step was taken on it."""
    repeated: int = 0
    """Of `passes`: frames that had been in the same pass before."""
    discarded: int = 0
    """Frames of acknowledged uploads in attempts that were given up; what a killed cloud had isn't known."""


class UploadLedger:
    """The open stage's uploads, vehicle by vehicle, until it is committed."""

    def __init__(self) -> None:
        self._acknowledged: dict[str, frozenset[int]] = {}
        self._visits: defaultdict[int, defaultdict[str, Counter[int]]] = defaultdict(
            lambda: defaultdict(Counter)
        )
        """By pass and vehicle: how often each frame was in it."""

    def acknowledge(self, vehicle: str, frames: Collection[int]) -> None:
        """A vehicle's turn is finished, with these train frames acknowledged."""
        self._acknowledged[vehicle] = frozenset(frames)

    def visit(self, number: int, vehicle: str, frames: Iterable[int]) -> None:
        """A first-order step of pass `number` of the stage was taken on these frames."""
        self._visits[number][vehicle].update(frames)

    def close(self, totals: dict[str, UploadCounts]) -> None:
        """The stage is over: add its counts to each vehicle's."""
        for vehicle, frames in self._acknowledged.items():
            passes = [visits[vehicle] for visits in self._visits.values()]
            counts = totals[vehicle]
            counts.acknowledged += len(frames)
            counts.trained += sum(
                bool(passes) and all(frame in visits for visits in passes) for frame in frames
            )
        for visits_of in self._visits.values():
            for vehicle, visits in visits_of.items():
                totals[vehicle].passes += visits.total()
                totals[vehicle].repeated += visits.total() - len(visits)
        self._acknowledged.clear()
        self._visits.clear()
