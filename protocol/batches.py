"""How frames are cut into batches to learn from: the same in the cloud and on a vehicle."""

from __future__ import annotations


def batch_bounds(n: int, batch_size: int) -> list[tuple[int, int]]:
    """Return [start, stop) of the batches of `n` frames; a single left-over frame joins its neighbour.

    A batch of one has poor statistics.
    """
    bounds = [(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]
    if batch_size > 1 and len(bounds) > 1 and bounds[-1][1] - bounds[-1][0] == 1:
        bounds[-2:] = [(bounds[-2][0], n)]
    return bounds


def batch_count(n: int, batch_size: int) -> int:
    """How many batches `batch_bounds` cuts `n` frames into, whatever number somebody claims to have."""
    batches = -(-n // batch_size)
    return batches - (batch_size > 1 and batches > 1 and n % batch_size == 1)


def batches_of_pass(frames: int, batch_size: int, most: int) -> int:
    """Batches of a pass by queries: all of them are of `batch_size` frames but the last; `most` 0 = all."""
    batches = -(-frames // batch_size)
    return min(batches, most) if most else batches
