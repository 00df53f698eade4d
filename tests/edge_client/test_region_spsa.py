"""The region-wise estimator against exact derivatives, of an encoder and a loss in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from edge_client.estimators.region_spsa import RegionSpsa
from protocol.errors import SettingError

RANDOM = np.random.default_rng(7)
SHAPE = (3, 2, 6, 8)
PARAMETERS = 10
JACOBIAN = RANDOM.standard_normal((PARAMETERS, *SHAPE))
"""All regions agree in part: what they share, and what is their own."""
JACOBIAN[:, 1:] = JACOBIAN[:, :1] + JACOBIAN[:, 1:]
TARGET = RANDOM.standard_normal(SHAPE)
PHI = RANDOM.standard_normal(PARAMETERS).astype(np.float32)


def encode(phi: np.ndarray) -> np.ndarray:
    """features_BCHW, linear in φ."""
    return np.tensordot(phi.astype(np.float64), JACOBIAN, 1)


def loss_map(features: np.ndarray, stride: int) -> np.ndarray:
    """Quadratic in the features of its own cell; the mean over cells is the loss."""
    cells = ((features - TARGET) ** 2).sum(1)
    frames, rows, columns = cells.shape
    return cells.reshape(frames, rows // stride, stride, columns // stride, stride).mean((2, 4))


def exact() -> np.ndarray:
    slope = 2 * (encode(PHI) - TARGET) / (SHAPE[0] * SHAPE[2] * SHAPE[3])
    return (JACOBIAN * slope).sum((1, 2, 3, 4))


def propose(estimator: RegionSpsa, seed: int) -> np.ndarray:
    return estimator.propose(PHI, encode(PHI), lambda phi, frame: encode(phi)[frame], seed)


def estimate(estimator: RegionSpsa, seed: int) -> np.ndarray:
    clean = encode(PHI)
    moves = propose(estimator, seed)
    stride = estimator.map_stride
    differences = [loss_map(clean + move, stride) - loss_map(clean - move, stride) for move in moves]
    return estimator.estimate(np.stack([loss_map(clean, stride), *differences], 1).astype(np.float32))


@pytest.mark.parametrize(
    "settings",
    [
        {"region": 2, "map_stride": 1},
        {"region": 4, "map_stride": 2, "moves": 3},
        {"region": 5, "map_stride": 1},
        {"region": 100, "map_stride": 2, "margin": 3},
    ],
    ids=str,
)
def test_mean_of_estimates_converges_to_the_gradient(settings: dict[str, int]) -> None:
    estimator = RegionSpsa(perturbation=0.02, **settings)
    drawn = np.stack([estimate(estimator, seed) for seed in range(400)]).astype(np.float64)
    error = drawn.mean(0) - exact()
    assert np.abs(error / (drawn.std(0) / np.sqrt(len(drawn)))).max() < 5


def test_regions_and_moves_lower_the_variance() -> None:
    def variance(**settings: int) -> float:
        estimator = RegionSpsa(map_stride=1, **settings)
        return float(np.stack([estimate(estimator, seed) for seed in range(200)]).var(0).sum())

    whole = variance(region=8)
    assert variance(region=2) < 0.5 * whole
    assert variance(region=8, moves=4) < 0.3 * whole


def test_margin_counts_the_cells_around_a_region_cut_at_the_borders() -> None:
    estimator = RegionSpsa(region=4, map_stride=2, margin=1)
    maps = RANDOM.standard_normal((3, 2, 3, 4))
    propose(estimator, 0)
    sums = estimator._region_sums(maps)
    by_hand = [maps[:, :, :3, :3], maps[:, :, :3, 1:], maps[:, :, 1:, :3], maps[:, :, 1:, 1:]]
    np.testing.assert_allclose(sums, np.stack([part.sum((2, 3)) for part in by_hand], 2))


def test_wrong_settings_and_answers_are_told() -> None:
    for name, value in (("region", 0), ("moves", 0), ("margin", -1), ("perturbation", 0.0)):
        with pytest.raises(SettingError, match=str(value)):
            RegionSpsa(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="map stride 4 must divide the feature map of 6x8"):
        RegionSpsa(map_stride=4).map_size(SHAPE)
    estimator = RegionSpsa(map_stride=2)
    propose(estimator, 0)
    for maps in (np.zeros((3, 1, 3, 4)), np.full((3, 2, 3, 4), np.nan)):
        with pytest.raises(ValueError, match=r"expected finite loss maps \(3, 2, 3, 4\)"):
            estimator.estimate(maps.astype(np.float32))
