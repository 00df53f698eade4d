"""How much a vehicle computes in a turn, counted where it is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

from protocol.charging import Computing, charge
from protocol.messages import Work


@dataclass
class Meter:
    """What has been computed so far."""

    forwards: int = 0
    """Frames through the encoder, also as the first half of a way back."""
    ways_back: int = 0
    """Frames back through it."""
    multiply_adds: int = 0
    """Of convolutions and matrix products, in encoder, head and whole network."""
    is_complete: bool = True
    """Whether every graph that has run says how much it computes."""

    def work(self, forward_multiply_adds: int) -> Work:
        """What the cloud is told; `forward_multiply_adds` of one frame through the encoder, 0 = not known."""
        known = self.is_complete and forward_multiply_adds > 0
        return Work(
            forwards=self.forwards,
            ways_back=self.ways_back,
            forward_equivalents=self.multiply_adds / forward_multiply_adds if known else None,
        )

    def minus(self, before: Meter) -> Meter:
        """What has been computed since."""
        return Meter(
            forwards=self.forwards - before.forwards,
            ways_back=self.ways_back - before.ways_back,
            multiply_adds=self.multiply_adds - before.multiply_adds,
            is_complete=self.is_complete,
        )


_METER: ContextVar[Meter | None] = ContextVar("meter", default=None)


@contextmanager
def metered() -> Iterator[Meter]:
    """Count what this thread computes in the body."""
    meter = Meter()
    token = _METER.set(meter)
    try:
        yield meter
    finally:
        _METER.reset(token)


def count(
    frames: int,
    multiply_adds: int,
    *,
    forwards: bool = False,
    ways_back: bool = False,
    is_back: bool = False,
) -> None:
    """Note that so many frames have gone through something of so many multiply-adds a frame, 0 = not known;
    and whether that was the encoder, or the way back through it, or (`is_back`) through something else."""
    charge(Computing.WAY_BACK if ways_back or is_back else Computing.FORWARD, frames, multiply_adds)
    meter = _METER.get()
    if meter is None or frames == 0:
        return
    meter.multiply_adds += frames * multiply_adds
    meter.is_complete = meter.is_complete and multiply_adds > 0
    meter.forwards += frames * forwards
    meter.ways_back += frames * ways_back


def so_far() -> Meter:
    """A copy of what has been counted in this body until now."""
    return replace(_METER.get() or Meter())


def add(done: Meter) -> None:
    """Count what was computed elsewhere: by an earlier attempt at the same work."""
    meter = _METER.get()
    if meter is not None:
        meter.forwards += done.forwards
        meter.ways_back += done.ways_back
        meter.multiply_adds += done.multiply_adds
        meter.is_complete = meter.is_complete and done.is_complete
