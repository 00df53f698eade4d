"""The feature-space estimator against exact derivatives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from edge_client.estimators.activation import Activation
from edge_client.estimators.windows import box_sum
from protocol.noise import derive_seed, signs
from protocol.perturbation import perturb

RANDOM = np.random.default_rng(5)
FRAMES, CHANNELS, HEIGHT, WIDTH = 2, 3, 6, 8
SPREADS = np.array([0.7, 1, 1.4])[:, None, None]
FEATURES = (RANDOM.standard_normal((FRAMES, CHANNELS, HEIGHT, WIDTH)) * SPREADS).astype(np.float32)
KERNEL = torch.from_numpy(RANDOM.standard_normal((4, CHANNELS, 3, 3)))
TARGET = torch.from_numpy(RANDOM.standard_normal((FRAMES, 4, HEIGHT, WIDTH)))
EVERYTHING = 2 * WIDTH + 1
"""A window that covers the map from every cell."""

LossMap = Callable[[Tensor], Tensor]
"""copies of features float64 (K, B, C, H, W) → losses (K, B, H, W)."""


def convolved(copies_KBCHW: Tensor) -> Tensor:
    values = functional.conv2d(copies_KBCHW.flatten(0, 1), KERNEL, padding=1)
    return values.unflatten(0, copies_KBCHW.shape[:2])


def quadratic(copies_KBCHW: Tensor) -> Tensor:
    """A quadratic in which neighbours matter to each other."""
    return ((convolved(copies_KBCHW) - TARGET) ** 2).sum(2)


def network(copies_KBCHW: Tensor) -> Tensor:
    """The loss of a convolution with a nonlinearity: each cell depends on the features beside it."""
    return ((torch.tanh(convolved(copies_KBCHW) / 3) - TARGET) ** 2).sum(2)


def exact(loss_map: LossMap) -> np.ndarray:
    """The gradient at FEATURES of the mean of the frames' losses, by autograd."""
    leaf = torch.from_numpy(FEATURES).double().requires_grad_()
    loss_map(leaf[None]).mean().backward()
    assert leaf.grad is not None
    return leaf.grad.numpy()


def answers(activation: Activation, loss_map: LossMap, seed: int) -> np.ndarray:
    """The maps that a cloud would answer with, (B, 1 + K, y, x)."""
    proposed = activation.propose(FEATURES, seed)

    def evaluate(copies: list[np.ndarray]) -> Tensor:
        maps = loss_map(torch.from_numpy(np.stack(copies)).double())
        return functional.avg_pool2d(maps, activation.map_stride).transpose(0, 1)

    clean = evaluate([FEATURES])
    plus = evaluate([perturb(FEATURES, proposed.scale_C, xi) for xi in proposed.seeds])
    minus = (
        evaluate([perturb(FEATURES, proposed.scale_C, xi, sign=-1) for xi in proposed.seeds])
        if activation.two_sided
        else clean
    )
    return torch.cat([clean, plus - minus], dim=1).float().numpy()


def estimates(activation: Activation, loss_map: LossMap, count: int) -> np.ndarray:
    """`count` independent estimates, float64 (count, B, C, H, W)."""
    return np.stack(
        [
            activation.estimate(answers(activation, loss_map, derive_seed("test", repeat))).astype(np.float64)
            for repeat in range(count)
        ]
    )


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize(("map_stride", "box_width"), [(1, EVERYTHING), (1, 3), (2, 3)])
def test_mean_of_estimates_converges_to_the_gradient_of_a_quadratic(
    two_sided: bool, map_stride: int, box_width: int
) -> None:
    """A 3x3 convolution's features matter within a 3x3 window: nothing is left out of any of these."""
    activation = Activation(
        scale=0.1, seeds=32, two_sided=two_sided, map_stride=map_stride, box_width=box_width
    )
    drawn, gradient = estimates(activation, quadratic, 100), exact(quadratic)
    standard_error = drawn.std(axis=0) / np.sqrt(len(drawn))
    assert np.abs((drawn.mean(axis=0) - gradient) / standard_error).max() < 5
    assert cosine(drawn.mean(axis=0), gradient) > 0.96


def test_mean_of_estimates_converges_to_the_gradient_of_a_network() -> None:
    activation = Activation(scale=0.02, seeds=32, two_sided=True, box_width=3)
    drawn = estimates(activation, network, 100)
    assert cosine(drawn.mean(axis=0), exact(network)) > 0.96


@pytest.mark.parametrize("seeds", [4, 16])
def test_variance_falls_with_the_number_of_seeds(seeds: int) -> None:
    one = estimates(Activation(seeds=1, box_width=3), network, 400).var(axis=0).sum()
    many = estimates(Activation(seeds=seeds, box_width=3), network, 200).var(axis=0).sum()
    assert many * seeds / one == pytest.approx(1, rel=0.2)


def test_cosine_grows_with_the_number_of_seeds() -> None:
    gradient = exact(network)
    cosines = [
        np.mean(
            [cosine(drawn, gradient) for drawn in estimates(Activation(seeds=k, box_width=3), network, 20)]
        )
        for k in (1, 4, 16, 64)
    ]
    assert cosines == sorted(cosines)
    assert cosines[-1] > 0.8 > 0.5 > cosines[0]


def test_narrow_window_leaves_out_noise() -> None:
    wide, narrow = (
        np.mean(
            [
                cosine(drawn, exact(network))
                for drawn in estimates(Activation(seeds=4, box_width=width), network, 30)
            ]
        )
        for width in (EVERYTHING, 3)
    )
    assert narrow > 1.5 * wide


@pytest.mark.parametrize("two_sided", [False, True])
def test_estimate_is_the_formula_written_out(two_sided: bool) -> None:
    activation = Activation(scale=0.2, seeds=2, two_sided=two_sided, map_stride=2, box_width=3)
    proposed = activation.propose(FEATURES, 3)
    maps = RANDOM.standard_normal((FRAMES, 3, HEIGHT // 2, WIDTH // 2)).astype(np.float32)
    expected = np.zeros(FEATURES.shape)
    for b, c, i, j in np.ndindex(*FEATURES.shape):
        y, x = i // 2, j // 2
        for k, seed in enumerate(proposed.seeds):
            window = maps[b, 1 + k, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            credit = window.astype(np.float64).sum() / (FRAMES * (HEIGHT // 2) * (WIDTH // 2))
            step = 0.2 * FEATURES[:, c].astype(np.float64).std()
            xi = signs(seed, FEATURES.shape)[b, c, i, j]
            expected[b, c, i, j] += credit * xi / (step * (2 if two_sided else 1)) / 2
    np.testing.assert_allclose(activation.estimate(maps), expected, rtol=1e-5, atol=1e-7)


def test_channel_that_does_not_vary_gets_no_gradient() -> None:
    features = FEATURES.copy()
    features[:, 1] = 3
    activation = Activation(seeds=2)
    assert activation.propose(features, 0).scale_C[1] == 0
    gradient = activation.estimate(np.ones((FRAMES, 3, HEIGHT, WIDTH), np.float32))
    assert np.isfinite(gradient).all() and not gradient[:, 1].any() and gradient[:, 0].any()


@pytest.mark.parametrize("width", [1, 3, 5, EVERYTHING])
def test_box_sums_equal_a_convolution_with_ones(width: int) -> None:
    maps = RANDOM.standard_normal((2, 3, HEIGHT, WIDTH)).astype(np.float32)
    ones = torch.ones(3, 1, width, width, dtype=torch.float64)
    expected = functional.conv2d(torch.from_numpy(maps).double(), ones, padding=width // 2, groups=3)
    np.testing.assert_allclose(box_sum(maps, width), expected.numpy(), atol=1e-12)


def test_same_seed_gives_the_same_proposal_and_others_differ() -> None:
    activation = Activation(seeds=3)
    first, again, other = (activation.propose(FEATURES, seed) for seed in (5, 5, 6))
    assert first.seeds == again.seeds and np.array_equal(first.scale_C, again.scale_C)
    assert len({*first.seeds, *other.seeds}) == 6
    np.testing.assert_allclose(first.scale_C, 0.1 * FEATURES.std(axis=(0, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": 0.0}, "perturbation scale must be positive, got 0.0"),
        ({"scale": float("nan")}, "perturbation scale must be positive, got nan"),
        ({"seeds": 0}, "number of seeds must be at least 1, got 0"),
        ({"map_stride": 0}, "map stride must be at least 1, got 0"),
        ({"box_width": 4}, "box width must be odd, got 4"),
    ],
)
def test_settings_out_of_range_are_rejected(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Activation(**settings)  # type: ignore[arg-type]


def test_map_stride_that_does_not_divide_the_features_is_rejected() -> None:
    with pytest.raises(ValueError, match="map stride 4 must divide the feature map of 6x8"):
        Activation(map_stride=4).map_size((3, 6, 8))


@pytest.mark.parametrize("shape", [(2, 2, 6, 8), (2, 3, 6, 7), (1, 3, 6, 8)])
def test_maps_of_another_shape_are_rejected(shape: tuple[int, ...]) -> None:
    activation = Activation(seeds=2)
    activation.propose(FEATURES, 0)
    with pytest.raises(ValueError, match=r"expected finite loss maps \(2, 3, 6, 8\), got"):
        activation.estimate(np.zeros(shape, np.float32))


def test_maps_that_are_not_finite_are_rejected() -> None:
    activation = Activation(seeds=2)
    activation.propose(FEATURES, 0)
    with pytest.raises(ValueError, match="expected finite loss maps"):
        activation.estimate(np.full((2, 3, 6, 8), np.nan, np.float32))
