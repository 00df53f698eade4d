"""SPSA against exact derivatives."""

from __future__ import annotations

import numpy as np
import pytest

from edge_client.estimators.spsa import Spsa
from protocol.noise import derive_seed

RANDOM = np.random.default_rng(7)
SIZE = 6
FACTOR = RANDOM.standard_normal((SIZE, SIZE))
HESSIAN = FACTOR @ FACTOR.T / SIZE
LINEAR = RANDOM.standard_normal(SIZE)
THETA = RANDOM.standard_normal(SIZE).astype(np.float32)
GRADIENT = HESSIAN @ THETA + LINEAR


def quadratic(theta: np.ndarray) -> float:
    point = theta.astype(np.float64)
    return float(point @ HESSIAN @ point / 2 + LINEAR @ point)


def estimates(spsa: Spsa, count: int) -> np.ndarray:
    """`count` independent estimates at THETA, float64 (count, n)."""
    drawn = []
    for repeat in range(count):
        points = spsa.propose(THETA, derive_seed("test", repeat))
        drawn.append(spsa.estimate(np.array([quadratic(point) for point in points])))
    return np.array(drawn, np.float64)


def test_mean_of_estimates_converges_to_the_gradient_of_a_quadratic() -> None:
    drawn = estimates(Spsa(perturbation=0.05, queries=1), 6000)
    standard_error = drawn.std(axis=0) / np.sqrt(len(drawn))
    assert np.all(np.abs(drawn.mean(axis=0) - GRADIENT) < 4 * standard_error)
    assert standard_error.max() < 0.15 * np.linalg.norm(GRADIENT)


@pytest.mark.parametrize("queries", [2, 5, 10])
def test_variance_falls_with_the_number_of_queries(queries: int) -> None:
    one = estimates(Spsa(perturbation=0.05, queries=1), 3000).var(axis=0).sum()
    many = estimates(Spsa(perturbation=0.05, queries=queries), 1500).var(axis=0).sum()
    assert many * queries / one == pytest.approx(1, rel=0.15)


def test_estimate_is_the_formula_of_the_paper() -> None:
    spsa = Spsa(perturbation=0.01, queries=3)
    points = np.array(spsa.propose(THETA, 11), np.float64)
    losses = RANDOM.standard_normal(6)
    expected = np.zeros(SIZE)
    for query in range(3):
        u = (points[2 * query] - points[2 * query + 1]) / 0.02
        assert np.all((np.abs(u) > 0.4999) & (np.abs(u) < 1.0001))
        np.testing.assert_allclose(points[2 * query] + points[2 * query + 1], 2 * THETA, atol=1e-6)
        expected += (losses[2 * query] - losses[2 * query + 1]) / 0.02 / u
    np.testing.assert_allclose(spsa.estimate(losses), expected / 3, rtol=1e-4)


def test_same_seed_gives_the_same_points_and_others_differ() -> None:
    spsa = Spsa(queries=2)
    first, again, other = spsa.propose(THETA, 5), spsa.propose(THETA, 5), spsa.propose(THETA, 6)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[0], first[2])
    assert all(point.dtype == np.float32 for point in first)


@pytest.mark.parametrize("scale", [0.0, -0.1, float("nan"), float("inf")])
def test_bad_scale_is_rejected(scale: float) -> None:
    with pytest.raises(ValueError, match=f"perturbation scale must be positive, got {scale}"):
        Spsa(perturbation=scale)


def test_bad_number_of_queries_is_rejected() -> None:
    with pytest.raises(ValueError, match="number of queries must be at least 1, got 0"):
        Spsa(queries=0)


@pytest.mark.parametrize("losses", [[1.0], [1.0, 2.0, 3.0, float("nan")], [[1.0, 2.0], [3.0, 4.0]]])
def test_losses_that_do_not_answer_the_points_are_rejected(losses: list[float]) -> None:
    spsa = Spsa(queries=2)
    spsa.propose(THETA, 0)
    with pytest.raises(ValueError, match="expected 4 finite losses"):
        spsa.estimate(np.array(losses))
