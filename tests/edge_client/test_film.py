"""Scales and biases of channels as what learns: the map, its derivative, and its place in the state."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edge_client.encoder.bundle import EncoderBundle
from edge_client.encoder.film import Everything, Film
from edge_client.encoder.runtime import Encoder
from edge_client.errors import TurnRefused
from edge_client.learners.subspaces import Learning
from edge_client.optimizers import Adam, Nesterov
from edge_client.state import VehicleState
from fleet.export.bundle import export_bundle
from fleet.export.encoders import build_encoder

SIZE = (32, 24)
RANDOM = np.random.default_rng(3)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> EncoderBundle:
    return export_bundle("stride8-c8", tmp_path_factory.mktemp("bundle") / "e", image_size=SIZE, seed=3)


@pytest.fixture(scope="module")
def film(bundle: EncoderBundle) -> Film:
    return Film(bundle.spec, bundle.theta0)


def drawn(size: int, spread: float = 0.2) -> np.ndarray:
    return (spread * RANDOM.standard_normal(size)).astype(np.float32)


def test_every_output_channel_has_a_scale_and_a_shift(film: Film) -> None:
    assert film.size == 2 * (16 + 32 + 8)


def test_start_is_the_initial_theta_to_the_bit(film: Film, bundle: EncoderBundle) -> None:
    assert np.array_equal(film.theta_of(film.start()), bundle.theta0)


def test_theta_is_what_scaled_and_shifted_layers_hold(film: Film, bundle: EncoderBundle) -> None:
    phi = drawn(film.size)
    module = build_encoder("stride8-c8", seed=3).folded()
    place = 0
    with torch.no_grad():
        for convolution in module.convolutions:
            weight, bias = convolution.get_parameter("weight"), convolution.get_parameter("bias")
            scale, shift = torch.from_numpy(phi[place : place + 2 * len(bias)]).chunk(2)
            weight *= 1 + scale[:, None, None, None]
            bias += shift
            place += 2 * len(bias)
    expected = torch.nn.utils.parameters_to_vector(module.parameters()).detach().numpy()
    np.testing.assert_allclose(film.theta_of(phi), expected, rtol=1e-6, atol=1e-8)


def test_pulled_back_gradient_equals_autograd(film: Film, bundle: EncoderBundle) -> None:
    """From φ through the whole encoder, in one piece by torch and by chain rule over the bundle's VJP."""
    phi = drawn(film.size)
    frames = RANDOM.integers(0, 256, (2, SIZE[1], SIZE[0], 3), dtype=np.uint8)
    v = RANDOM.standard_normal((2, *bundle.spec.feature_shape)).astype(np.float32)
    ours = film.pull_back(Encoder(bundle, mode="rebuild").vjp(film.theta_of(phi), frames, v))

    module = build_encoder("stride8-c8", seed=3).folded()
    names = [name for name, _ in module.named_parameters()]
    leaf = torch.from_numpy(phi).requires_grad_()
    parameters, place = {}, 0
    for name, start in zip(names, module.parameters(), strict=True):
        part = leaf[place : place + start.shape[0]]
        place += start.shape[0]
        parameters[name] = (
            start.detach() * (1 + part[:, None, None, None]) if start.dim() == 4 else start + part
        )
    features = torch.func.functional_call(module, parameters, torch.from_numpy(frames))
    (features * torch.from_numpy(v)).sum().backward()
    assert leaf.grad is not None
    expected = leaf.grad.numpy()
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


def test_pulled_back_gradient_equals_finite_differences(film: Film) -> None:
    theta = film.theta_of(film.start())
    slope = drawn(theta.size, 1)
    gradient = film.pull_back(slope)
    phi = drawn(film.size)
    for position in RANDOM.integers(0, film.size, 20):
        moved = phi.copy()
        moved[position] += 1
        change = film.theta_of(moved).astype(np.float64) - film.theta_of(phi)
        assert change @ slope == pytest.approx(gradient[position], rel=1e-3, abs=1e-4)


def test_everything_changes_nothing(bundle: EncoderBundle) -> None:
    everything = Everything(bundle.theta0)
    gradient = drawn(bundle.theta0.size)
    assert np.array_equal(everything.theta_of(everything.start()), bundle.theta0)
    assert np.array_equal(everything.pull_back(gradient), gradient)


@pytest.mark.parametrize("name", ["all", "film"])
def test_learning_goes_on_from_its_state_bit_for_bit(bundle: EncoderBundle, name: str) -> None:
    def resume(state: VehicleState) -> Learning:
        return Learning.resume(state, name, bundle.spec, Adam(1e-2))

    start = VehicleState(theta=bundle.theta0, optimizer={})
    straight, interrupted = resume(start), resume(start)
    for step in range(4):
        gradient = drawn(straight.subspace.size)
        straight.step(gradient, where="test")
        interrupted.step(gradient, where="test")
        if step == 1:
            interrupted = resume(interrupted.state())
    assert np.array_equal(straight.theta, interrupted.theta)
    assert not np.array_equal(straight.theta, bundle.theta0)


def test_film_keeps_the_directions_of_the_first_turns_weights(bundle: EncoderBundle) -> None:
    learning = Learning.resume(
        VehicleState(theta=bundle.theta0, optimizer={}), "film", bundle.spec, Nesterov(0.1)
    )
    for _ in range(3):
        learning.step(drawn(learning.subspace.size), where="test")
        learning = Learning.resume(learning.state(), "film", bundle.spec, Nesterov(0.1))
    [weight, *_] = bundle.spec.parameters
    before, after = (
        theta[weight.offset : weight.offset + weight.size].reshape(weight.shape[0], -1)
        for theta in (bundle.theta0, learning.theta)
    )
    for old, new in zip(before, after, strict=True):
        assert abs(old @ new) == pytest.approx(np.linalg.norm(old) * np.linalg.norm(new), rel=1e-5)


def test_state_of_another_way_of_learning_is_refused(bundle: EncoderBundle) -> None:
    start = VehicleState(theta=bundle.theta0, optimizer={})
    film = Learning.resume(start, "film", bundle.spec, Adam(1e-2))
    film.step(drawn(film.subspace.size), where="test")
    with pytest.raises(TurnRefused, match="of another way of learning"):
        Learning.resume(film.state(), "all", bundle.spec, Adam(1e-2))
    with pytest.raises(TurnRefused, match="of another way of learning"):
        Learning.resume(film.state(), "film", bundle.spec, Nesterov(1e-2))


def test_divergence_is_refused_in_one_line(bundle: EncoderBundle) -> None:
    learning = Learning.resume(
        VehicleState(theta=bundle.theta0, optimizer={}), "film", bundle.spec, Nesterov(0.1)
    )
    gradient = np.full(learning.subspace.size, np.inf, np.float32)
    with (
        np.errstate(all="ignore"),
        pytest.raises(TurnRefused, match=r"diverged in epoch 0, batch 2; lower the .* rate \(now 0.1\)"),
    ):
        learning.step(gradient, where="epoch 0, batch 2")
