"""Labels without outlines: each square in one class."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from edge_client.coarse_labels import coarsen_label


@given(
    arrays(
        np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.sampled_from((0, 1, 7, 255))
    ),
    st.one_of(st.integers(1, 12), st.just(1 << 80)),
)
def test_each_square_is_of_the_class_that_most_of_it_has(label_HW: NDArray[np.uint8], side: int) -> None:
    coarse_HW = coarsen_label(label_HW, side)
    assert coarse_HW.shape == label_HW.shape and coarse_HW.dtype == np.uint8
    for y in range(0, label_HW.shape[0], side):
        for x in range(0, label_HW.shape[1], side):
            here, told = (array[y : y + side, x : x + side] for array in (label_HW, coarse_HW))
            ids, counts = np.unique(here, return_counts=True)
            assert (told == ids[counts.argmax()]).all()
