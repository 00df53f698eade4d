"""What is computed, told where it is computed to whoever charges time for it: a simulated device.

Without one nothing is told. The listener is of the thread, and only adds up: whoever computes may hold locks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum


class Computing(Enum):
    """Kinds of work, each measured in a unit of its own."""

    FORWARD = "forward"
    """Multiply-adds of a graph of the vehicle's; 0 = not known."""
    WAY_BACK = "way back"
    """Multiply-adds of a way back through one, or of a whole step of training."""
    CODEC = "codec"
    """Elements of features that are coded."""
    NETWORK = "network"
    """Cells of features that the cloud's network is computed on."""


Charge = Callable[[Computing, int, float], None]
"""Gets what kind of work, of how many frames, and how much of its unit a frame."""

_CHARGE: ContextVar[Charge | None] = ContextVar("charge", default=None)


@contextmanager
def charged(to: Charge) -> Iterator[None]:
    """Tell `to` what this thread computes in the body."""
    token = _CHARGE.set(to)
    try:
        yield
    finally:
        _CHARGE.reset(token)


def charge(kind: Computing, frames: int, amount: float) -> None:
    """Something has been computed for some frames, of so much a frame."""
    to = _CHARGE.get()
    if to is not None and frames:
        to(kind, frames, amount)
