"""Estimators on networks of one layer, whose gradients stand here as formulas.

Few features have few sign patterns: the mean over all of them is the expectation, without sampling error.
Legend: C channels, W cells in one row of one frame, P classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edge_client.estimators.activation import Activation
from edge_client.estimators.spsa import Spsa
from protocol.noise import derive_seed, signs
from protocol.perturbation import perturb

RANDOM = np.random.default_rng(11)
CHANNELS, CELLS, CLASSES = 2, 2, 3
SHAPE = (1, CHANNELS, 1, CELLS)
FEATURES = RANDOM.standard_normal(SHAPE).astype(np.float32)
SLOPES = RANDOM.standard_normal((CELLS, *SHAPE))
"""What each feature (last four axes) adds to the loss of each cell (first)."""
CURVATURE = RANDOM.standard_normal((CELLS, FEATURES.size, FEATURES.size))
WEIGHT_PC = RANDOM.standard_normal((CLASSES, CHANNELS))
LABEL_W = np.array([0, 2])

CellLosses = Callable[[np.ndarray], np.ndarray]
"""features (1, C, 1, W) → the loss of each cell (W,); their mean is the loss."""


def linear(features: np.ndarray) -> np.ndarray:
    return np.tensordot(SLOPES, features.astype(np.float64), axes=4)


def quadratic(features: np.ndarray) -> np.ndarray:
    z = features.astype(np.float64).ravel()
    return linear(features) + np.einsum("wij,i,j->w", CURVATURE, z, z)


def probabilities(features: np.ndarray) -> np.ndarray:
    """Of a 1x1 convolution and softmax, (P, W)."""
    scores_PW = np.exp(WEIGHT_PC @ features[0, :, 0].astype(np.float64))
    return scores_PW / scores_PW.sum(axis=0)


def one_layer(features: np.ndarray) -> np.ndarray:
    return -np.log(probabilities(features)[LABEL_W, range(CELLS)])


def one_layer_gradient() -> np.ndarray:
    """Wᵀ (p − y) / W."""
    wrong_PW = probabilities(FEATURES) - np.eye(CLASSES)[:, LABEL_W]
    return (WEIGHT_PC.T @ wrong_PW / CELLS).reshape(SHAPE)


def expectation(cell_losses: CellLosses, *, scale: float, two_sided: bool, box_width: int) -> np.ndarray:
    """The mean of the estimates over all sign patterns, each drawn from some seed."""
    activation = Activation(scale=scale, seeds=1, two_sided=two_sided, box_width=box_width)
    by_pattern: dict[bytes, np.ndarray] = {}
    seed = 0
    while len(by_pattern) < 2**FEATURES.size:
        proposed = activation.propose(FEATURES, seed)
        seed += 1
        [own] = proposed.seeds
        pattern = signs(own, SHAPE).tobytes()
        if pattern in by_pattern:
            continue
        clean = cell_losses(FEATURES)
        plus = cell_losses(perturb(FEATURES, proposed.scale_C, own))
        minus = cell_losses(perturb(FEATURES, proposed.scale_C, own, sign=-1)) if two_sided else clean
        maps = np.stack([clean, plus - minus]).reshape(1, 2, 1, CELLS)
        by_pattern[pattern] = activation.estimate(maps.astype(np.float32)).astype(np.float64)
    return np.mean(list(by_pattern.values()), axis=0)


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("scale", [0.1, 2.0])
def test_activation_expects_the_gradient_of_a_linear_loss(two_sided: bool, scale: float) -> None:
    found = expectation(linear, scale=scale, two_sided=two_sided, box_width=3)
    np.testing.assert_allclose(found, SLOPES.mean(axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("scale", [0.1, 2.0])
def test_activation_expects_the_gradient_of_a_quadratic_at_every_scale(two_sided: bool, scale: float) -> None:
    """What is even in ξ has mean zero against ξ."""
    found = expectation(quadratic, scale=scale, two_sided=two_sided, box_width=3)
    symmetric = CURVATURE + CURVATURE.transpose(0, 2, 1)
    gradient = SLOPES.mean(axis=0) + (symmetric.mean(axis=0) @ FEATURES.ravel()).reshape(SHAPE)
    np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-5)


def test_narrow_window_expects_the_part_of_the_gradient_inside_it() -> None:
    """With a window of one cell, what a feature does to the other cell is left out, and nothing else."""
    inside = np.stack([SLOPES[cell, ..., cell] / CELLS for cell in range(CELLS)], axis=-1)
    found = expectation(linear, scale=0.1, two_sided=False, box_width=1)
    np.testing.assert_allclose(found, inside, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("box_width", [1, 3])
def test_activation_misses_a_one_layer_networks_gradient_by_the_square_of_the_scale(
    two_sided: bool, box_width: int
) -> None:
    """A 1x1 convolution has its whole effect in its own cell."""
    wide, narrow = (
        np.abs(
            expectation(one_layer, scale=scale, two_sided=two_sided, box_width=box_width)
            - one_layer_gradient()
        ).max()
        for scale in (0.4, 0.2)
    )
    assert wide < 0.1 * np.abs(one_layer_gradient()).max()
    assert wide / narrow == pytest.approx(4, rel=0.1)


def test_spsa_of_one_weight_is_the_derivative_of_a_quadratic() -> None:
    """u cancels, and so does what is even in it."""
    theta = np.array([0.7], np.float32)
    spsa = Spsa(perturbation=0.25, queries=3)
    for seed in range(5):
        points = [float(point[0]) for point in spsa.propose(theta, seed)]
        [slope] = spsa.estimate([3 * point**2 - 2 * point for point in points])
        assert slope == pytest.approx(6 * 0.7 - 2, rel=1e-4)


def test_spsa_of_a_linear_loss_is_the_gradient_and_cross_terms_of_mean_zero() -> None:
    """One direction gives ĝᵢ = gᵢ + Σⱼ≠ᵢ gⱼ uⱼ/uᵢ, whatever c is; the signs of uⱼ/uᵢ are fair."""
    slope = RANDOM.standard_normal(4)
    theta = np.zeros(4, np.float32)
    spsa = Spsa(perturbation=0.5, queries=1)
    drawn = []
    for repeat in range(2000):
        plus, minus = spsa.propose(theta, derive_seed("linear", repeat))
        estimate = spsa.estimate([slope @ plus, slope @ minus])
        u = (plus - minus).astype(np.float64)
        np.testing.assert_allclose(estimate, (slope @ u) / u, rtol=1e-4, atol=1e-5)
        drawn.append(estimate)
    standard_error = np.std(drawn, axis=0) / np.sqrt(len(drawn))
    assert np.all(np.abs(np.mean(drawn, axis=0) - slope) < 4 * standard_error)


def test_mean_of_spsa_converges_to_a_one_layer_networks_gradient() -> None:
    """Softmax regression: the weights' gradient is (p − y) zᵀ."""

    def loss(weights: np.ndarray) -> float:
        scores = np.exp(weights.reshape(CLASSES, CHANNELS).astype(np.float64) @ z)
        return float(-np.log(scores[1] / scores.sum()))

    z = np.array([1.3, -0.4])
    theta = RANDOM.standard_normal(CLASSES * CHANNELS).astype(np.float32)
    scores = np.exp(theta.reshape(CLASSES, CHANNELS).astype(np.float64) @ z)
    gradient = np.outer(scores / scores.sum() - np.eye(CLASSES)[1], z).ravel()
    spsa = Spsa(perturbation=0.02, queries=4)
    drawn = [
        spsa.estimate([loss(point) for point in spsa.propose(theta, derive_seed("softmax", repeat))])
        for repeat in range(1500)
    ]
    standard_error = np.std(drawn, axis=0) / np.sqrt(len(drawn))
    assert np.all(np.abs(np.mean(drawn, axis=0) - gradient) < 4.5 * standard_error)
    assert standard_error.max() < 0.05 * np.linalg.norm(gradient)
