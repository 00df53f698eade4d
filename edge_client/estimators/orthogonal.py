"""Directions of ±1 that are orthogonal to each other, as far as there are enough of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protocol.noise import derive_seed, permutation, signs


def rows_of(size: int) -> int:
    """P, the least power of two that is not below `size`."""
    return 1 << (size - 1).bit_length()


def orthogonal_signs(seed: int, count: int, size: int) -> NDArray[np.int8]:
    """int8 (count, size) of ±1, drawn from `seed`.

    Rows of a Hadamard matrix of P = `rows_of(size)` rows, in random order, their columns' signs flipped at
    random and cut to `size`. Of every row u, E[uᵀu] is the identity; of P rows together, Σ uᵀu is P times it.
    After P rows others begin, with signs of their own. Such directions explore better than independent ones
    (Choromanski et al. 2018, arXiv 1804.02395).
    """
    columns = np.arange(size, dtype=np.uint64)
    height = rows_of(size)
    blocks = []
    for number, first in enumerate(range(0, count, height)):
        rows = permutation(derive_seed(seed, "rows", number), height)[: count - first].astype(np.uint64)
        flips = signs(derive_seed(seed, "columns", number), (size,))
        blocks.append((1 - 2 * _parity(rows[:, None] & columns)).astype(np.int8) * flips)
    return np.concatenate(blocks)


def _parity(words: NDArray[np.uint64]) -> NDArray[np.int8]:
    """Of the bits that are set."""
    for shift in (32, 16, 8, 4, 2, 1):
        words = words ^ (words >> np.uint64(shift))
    return (words & np.uint64(1)).astype(np.int8)
