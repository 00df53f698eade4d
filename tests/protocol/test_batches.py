"""How frames are cut into batches."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocol.batches import batch_bounds, batch_count


@given(st.integers(0, 200), st.integers(1, 20))
def test_batches_are_counted_as_they_are_cut(frames: int, batch_size: int) -> None:
    assert batch_count(frames, batch_size) == len(batch_bounds(frames, batch_size))


def test_counting_takes_no_longer_for_more_frames() -> None:
    assert batch_count(2**60 + 1, 8) == 2**57
