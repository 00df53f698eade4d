"""Scales and biases of channels as what learns: the map, its derivative, and its place in the state."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from edge_client.encoder.bundle import EncoderBundle, EncoderSpec
from edge_client.encoder.runtime import Encoder
from edge_client.encoder.subspaces import Everything, Part, subspace_of
from edge_client.errors import TurnRefused
from edge_client.learners.subspaces import Learning
from edge_client.optimizers import Adam, Nesterov
from edge_client.state import VehicleState
from fleet.export.bundle import export_bundle, export_encoder
from fleet.export.coordinates import Coordinates
from fleet.export.encoders import build_encoder
from fleet.export.modules import ModuleEncoder
from protocol.errors import SettingError
from protocol.plans.adaptation import SUBSPACES, Adaptation, SubspaceName

SIZE = (32, 24)
RANDOM = np.random.default_rng(3)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> EncoderBundle:
    return export_bundle("stride8-c8", tmp_path_factory.mktemp("bundle") / "e", image_size=SIZE, seed=3)


class Projecting(nn.Module):
    """ReLU6, a depthwise convolution, and a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU6(), nn.Conv2d(6, 6, 5, 2, 2, groups=6), nn.ReLU6()
        )
        self.projection = nn.Conv2d(6, 3, 1)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        features_BCHW: torch.Tensor = self.projection(self.trunk(x_BCHW))
        return features_BCHW


@pytest.fixture(scope="module")
def projecting(tmp_path_factory: pytest.TempPathFactory) -> EncoderBundle:
    encoder = ModuleEncoder(Projecting)
    encoder.initialise(1)
    return export_encoder(encoder, "mine", tmp_path_factory.mktemp("projecting") / "e", image_size=SIZE)


@pytest.fixture(scope="module")
def film(bundle: EncoderBundle) -> Part:
    return Part("film", bundle.spec, bundle.theta0)


def drawn(size: int, spread: float = 0.2) -> np.ndarray:
    return (spread * RANDOM.standard_normal(size)).astype(np.float32)


def test_every_output_channel_has_a_scale_and_a_shift(film: Part) -> None:
    assert film.size == 2 * (16 + 32 + 8)


def test_start_is_the_initial_theta_to_the_bit(film: Part, bundle: EncoderBundle) -> None:
    assert np.array_equal(film.theta_of(film.start()), bundle.theta0)


def test_theta_is_what_scaled_and_shifted_layers_hold(film: Part, bundle: EncoderBundle) -> None:
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


def test_pulled_back_gradient_equals_autograd(film: Part, bundle: EncoderBundle) -> None:
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


def test_pulled_back_gradient_equals_finite_differences(film: Part) -> None:
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


@pytest.mark.parametrize("name", SUBSPACES)
def test_learning_goes_on_from_its_state_bit_for_bit(projecting: EncoderBundle, name: str) -> None:
    bundle = projecting

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


def elements(spec: EncoderSpec, names: Iterable[str]) -> np.ndarray:
    """Which of θ's are of the parameters of these names."""
    return np.isin(
        np.repeat([p.name for p in spec.parameters], [p.size for p in spec.parameters]), list(names)
    )


@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(SUBSPACES), seed=st.integers(0, 2**32), anchor=st.sampled_from([0.0, 0.3]))
def test_what_is_outside_a_subspace_never_moves(
    projecting: EncoderBundle, name: SubspaceName, seed: int, anchor: float
) -> None:
    spec, random = projecting.spec, np.random.default_rng(seed)
    state = VehicleState(theta=projecting.theta0, optimizer={})
    for _ in range(2):
        learning = Learning.resume(state, name, spec, Adam(1e-2))
        learning.hold(anchor, projecting.theta0)
        for _ in range(2):
            learning.step(random.standard_normal(learning.subspace.size).astype(np.float32), where="test")
        state = learning.state()
    moved = state.theta - projecting.theta0
    of_projection = elements(spec, spec.projection)
    assert (moved[of_projection] != 0).all()
    assert np.array_equal(moved[~of_projection] != 0, (projecting.theta0 != 0)[~of_projection]) == (
        name != "projection"
    )
    if name == "projection":
        assert not moved[~of_projection].any()
    if "film" in name:  # within a channel all weights keep their proportions
        for parameter in spec.parameters:
            if parameter.kind == "weight" and (name == "film" or parameter.name not in spec.projection):
                part = slice(parameter.offset, parameter.offset + parameter.size)
                scales = (state.theta / projecting.theta0)[part].reshape(parameter.shape[0], -1)
                np.testing.assert_allclose(scales, scales[:, :1].repeat(scales.shape[1], 1), rtol=1e-5)


@pytest.mark.parametrize("name", SUBSPACES)
@pytest.mark.parametrize("scale", [1.0, 1.3, 0.0, -0.7])
def test_own_way_back_of_a_subspace_is_the_part_of_the_whole(
    projecting: EncoderBundle, name: SubspaceName, scale: float
) -> None:
    """Also where a channel has been scaled to nothing, where its own graph can't tell."""
    encoder = Encoder(projecting, mode="rebuild")
    subspace = subspace_of(name, projecting.spec, projecting.theta0)
    phi = subspace.start() + drawn(subspace.size, 0.1)
    if "film" in name:
        phi[1] = scale - 1
    theta = subspace.theta_of(phi)
    frames = RANDOM.integers(0, 256, (3, SIZE[1], SIZE[0], 3), dtype=np.uint8)
    v = RANDOM.standard_normal((3, *projecting.spec.feature_shape)).astype(np.float32)
    expected = subspace.pull_back(encoder.vjp(theta, frames, v))
    found = encoder.linearise(theta, frames, subspace).pull_back(v)
    assert found.shape == (subspace.size,)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(
        encoder.vjp(theta, frames, v, subspace), found, atol=1e-6 * np.abs(found).max()
    )


def test_encoder_without_a_projection_refuses_to_learn_it(bundle: EncoderBundle) -> None:
    with pytest.raises(SettingError, match=r"stride8-c8 has no projection: .* must be all or film, got proj"):
        subspace_of("projection", bundle.spec, bundle.theta0)
    state = VehicleState(theta=bundle.theta0, optimizer={})
    with pytest.raises(TurnRefused, match=r"has no projection"):
        Learning.resume(state, "projection+film", bundle.spec, Nesterov(0.1))


def test_subspace_that_nobody_names_is_the_encoders() -> None:
    assert Adaptation().of_encoder("film").subspace == "film"
    assert Adaptation(subspace="all").of_encoder("film").subspace == "all"


@pytest.mark.parametrize("name", SUBSPACES[1:])
def test_torch_learns_the_same_coordinates(projecting: EncoderBundle, name: SubspaceName) -> None:
    """What `centralized` trains: the same θ at the same φ."""
    encoder = ModuleEncoder(Projecting)
    encoder.initialise(1)
    plain = encoder.folded()
    coordinates = Coordinates(plain, name, name="mine")
    subspace = subspace_of(name, projecting.spec, projecting.theta0)
    phi = drawn(subspace.size)
    with torch.no_grad():
        coordinates.phi.copy_(torch.from_numpy(phi))
        moved = {**dict(plain.named_parameters()), **coordinates.moved()}
    theta = torch.cat([moved[key].ravel() for key, _ in plain.named_parameters()]).numpy()
    np.testing.assert_allclose(theta, subspace.theta_of(phi), rtol=1e-6, atol=1e-8)
    assert list(coordinates.state_dict()) == ["phi"]
