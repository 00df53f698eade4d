"""The way back by forward passes alone, and the directions that it takes."""

from __future__ import annotations

import numpy as np
import pytest

from edge_client.estimators.forward_differences import ForwardDifferences
from edge_client.estimators.orthogonal import orthogonal_signs, rows_of

RANDOM = np.random.default_rng(3)
SIZE, FRAMES = 11, 3
WEIGHTS = RANDOM.standard_normal((SIZE, FRAMES, 2, 4, 5))
PHI = RANDOM.standard_normal(SIZE).astype(np.float32)
V = RANDOM.standard_normal(WEIGHTS.shape[1:]).astype(np.float32)


def encode(phi: np.ndarray) -> np.ndarray:
    return np.tanh(np.tensordot(phi.astype(np.float64), WEIGHTS, 1)).astype(np.float32)


def pulled_back(passes: int, seed: int, distance: float = 1e-3) -> np.ndarray:
    way = ForwardDifferences(
        lambda phi, frame: encode(phi)[frame],
        PHI,
        encode(PHI),
        passes=passes,
        distance=distance,
        seed=seed,
    )
    return way.pull_back(V)


def exact() -> np.ndarray:
    return (WEIGHTS * (V * (1 - encode(PHI) ** 2))).sum((1, 2, 3, 4))


@pytest.mark.parametrize("passes", [rows_of(SIZE), 3 * rows_of(SIZE)])
def test_as_many_passes_as_directions_give_the_product_itself(passes: int) -> None:
    np.testing.assert_allclose(pulled_back(passes, 1), exact(), atol=2e-2 * np.abs(exact()).max())


def test_mean_of_fewer_passes_is_the_product() -> None:
    drawn = np.stack([pulled_back(3, seed, 1e-4) for seed in range(600)]).astype(np.float64)
    error = drawn.mean(0) - exact()
    assert np.abs(error / (drawn.std(0) / np.sqrt(len(drawn)) + 2e-3)).max() < 5


@pytest.mark.parametrize(("count", "size"), [(1, 1), (5, 3), (16, 16), (40, 11), (7, 300)])
def test_directions_are_orthogonal_as_far_as_there_are_enough(count: int, size: int) -> None:
    height = rows_of(size)
    signs = orthogonal_signs(4, count, size).astype(int)
    assert signs.shape == (count, size) and set(np.unique(signs)) <= {-1, 1}
    for first in range(0, count - height + 1, height):
        block = signs[first : first + height]
        assert np.array_equal(block.T @ block, height * np.eye(size, dtype=int))
    if size == height and count <= height:
        assert np.array_equal(signs @ signs.T, size * np.eye(count, dtype=int))
    assert np.array_equal(signs, orthogonal_signs(4, count, size))
    assert size == 1 or not np.array_equal(signs, orthogonal_signs(5, count, size))
