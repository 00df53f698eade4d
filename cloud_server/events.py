"""What happens in a run, told to whoever writes it down or shows it.

Loops and algorithms tell; recorders subscribe: the log, TensorBoard, a view. None of them decides anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any


class Recorder:
    """Takes in what it overrides, in the thread and at the moment in which it happens."""

    def event(self, name: str, values: Mapping[str, Any]) -> None:
        """Something happened; `values` are JSON types, no NaN and no infinity among the numbers."""

    def scalar(self, tag: str, value: float, step: int) -> None:
        """One finite point of a curve."""


class Events:
    """Tells every recorder, in the order of their subscription."""

    def __init__(self, *recorders: Recorder, stamp: Callable[[], Mapping[str, Any]] | None = None) -> None:
        """`stamp`: what every event tells besides."""
        self._recorders = recorders
        self._stamp = stamp or dict

    def event(self, name: str, **values: Any) -> None:
        """Something happened; NaN and infinity are told as None.

        Raises:
            OSError: a recorder can't write; what was committed stands.
        """
        plain = {key: _plain(value) for key, value in (*values.items(), *self._stamp().items())}
        for recorder in self._recorders:
            recorder.event(name, plain)

    def scalar(self, tag: str, value: float, step: int) -> None:
        """One point of a curve; none where it is not finite.

        Raises:
            OSError: a recorder can't write; what was committed stands.
        """
        if math.isfinite(value):
            for recorder in self._recorders:
                recorder.scalar(tag, value, step)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
