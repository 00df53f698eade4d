"""The numpy optimizers against torch's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from edge_client.errors import StateError
from edge_client.optimizers import Adam, Nesterov, Optimizer

THETA = np.random.default_rng(0).standard_normal(50).astype(np.float32)
GRADIENTS = np.random.default_rng(1).standard_normal((200, 50)).astype(np.float32)

PAIRS: dict[str, tuple[Callable[[], Optimizer], Callable[[list[torch.Tensor]], torch.optim.Optimizer]]] = {
    "nesterov": (
        lambda: Nesterov(0.01, 0.9),
        lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, nesterov=True),
    ),
    "adam": (lambda: Adam(0.01), lambda parameters: torch.optim.Adam(parameters, lr=0.01)),
    "adam with other decays": (
        lambda: Adam(0.003, mean_decay=0.5, square_decay=0.95, epsilon=1e-4),
        lambda parameters: torch.optim.Adam(parameters, lr=0.003, betas=(0.5, 0.95), eps=1e-4),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_steps_equal_torch(name: str) -> None:
    build, build_reference = PAIRS[name]
    optimizer = build()
    reference_theta = torch.tensor(THETA)
    reference = build_reference([reference_theta])
    theta = THETA
    for step, gradient in enumerate(GRADIENTS):
        optimizer.rate = reference.param_groups[0]["lr"] = 0.01 / (1 + step)
        theta = optimizer.step(theta, gradient)
        reference_theta.grad = torch.from_numpy(gradient)
        reference.step()
        np.testing.assert_allclose(theta, reference_theta.numpy(), atol=1e-6, rtol=1e-6)
    assert theta.dtype == np.float32


@pytest.mark.parametrize("name", PAIRS)
def test_restored_state_goes_on_bit_identically(name: str) -> None:
    build, _ = PAIRS[name]
    optimizer, restored = build(), build()
    assert optimizer.state_arrays() == {}
    theta = THETA
    for gradient in GRADIENTS[:5]:
        theta = optimizer.step(theta, gradient)
    snapshot = optimizer.state_arrays()
    expected = theta
    for gradient in GRADIENTS[5:10]:
        expected = optimizer.step(expected, gradient)
    restored.load_state_arrays(snapshot)
    for gradient in GRADIENTS[5:10]:
        theta = restored.step(theta, gradient)
    assert np.array_equal(theta, expected)
    restored.load_state_arrays({})
    assert np.array_equal(restored.step(THETA, GRADIENTS[0]), build().step(THETA, GRADIENTS[0]))


@pytest.mark.parametrize("name", PAIRS)
def test_step_leaves_its_arguments_alone(name: str) -> None:
    theta, gradient = THETA.copy(), GRADIENTS[0].copy()
    optimizer = PAIRS[name][0]()
    optimizer.step(optimizer.step(theta, gradient), gradient)
    assert np.array_equal(theta, THETA)
    assert np.array_equal(gradient, GRADIENTS[0])


def test_state_of_another_optimizer_is_rejected() -> None:
    adam = Adam(0.1)
    adam.step(THETA, GRADIENTS[0])
    with pytest.raises(StateError, match="optimizer state needs velocity, got mean, square, steps"):
        Nesterov(0.1).load_state_arrays(adam.state_arrays())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Nesterov(0.0), "rate must be positive, got 0.0"),
        (lambda: Nesterov(0.1, 1.0), r"momentum must be in \[0, 1\), got 1.0"),
        (lambda: Adam(float("nan")), "rate must be positive, got nan"),
        (lambda: Adam(0.1, mean_decay=-0.1), r"mean decay must be in \[0, 1\), got -0.1"),
        (lambda: Adam(0.1, square_decay=2), r"square decay must be in \[0, 1\), got 2"),
        (lambda: Adam(0.1, epsilon=0.0), "epsilon must be positive, got 0.0"),
    ],
)
def test_values_out_of_range_are_rejected(build: Callable[[], Optimizer], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
