"""The encoders' vector-Jacobian products on ONNX Runtime, against autograd."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from edge_client.encoder.bundle import BundleError, EncoderBundle
from edge_client.encoder.runtime import Encoder
from fleet.export.bundle import export_bundle, export_encoder
from fleet.export.convolutions import ConvolutionEncoder, Layer
from fleet.export.encoders import CHAINS, build_encoder

SIZE = (64, 48)


def frames(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE[1], SIZE[0], 3), dtype=np.uint8)


def vector(bundle: EncoderBundle, count: int, seed: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.standard_normal((count, *bundle.spec.feature_shape)).astype(np.float32)


def autograd(encoder: ConvolutionEncoder, image: np.ndarray, v: np.ndarray) -> np.ndarray:
    features = encoder(torch.from_numpy(image))
    gradients = torch.autograd.grad(features, list(encoder.parameters()), torch.from_numpy(v))
    return torch.cat([gradient.ravel() for gradient in gradients]).numpy()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> EncoderBundle:
    return export_bundle("stride8-c8", tmp_path_factory.mktemp("bundle") / "e", image_size=SIZE, seed=3)


@pytest.mark.parametrize("mode", ["bind", "rebuild"])
@pytest.mark.parametrize("name", CHAINS)
def test_gradient_equals_autograd(tmp_path: Path, name: str, mode: str) -> None:
    bundle = export_bundle(name, tmp_path / "e", image_size=SIZE, seed=2)
    module = build_encoder(name, seed=2).folded()
    theta = bundle.theta0 * np.float32(1.1) + np.float32(0.003)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(theta), module.parameters())
    v = vector(bundle, 2)
    expected = autograd(module, frames(2), v)
    gradient = Encoder(bundle, mode=mode).vjp(theta, frames(2), v)
    assert gradient.dtype == np.float32
    for parameter in bundle.spec.parameters:
        part = slice(parameter.offset, parameter.offset + parameter.size)
        np.testing.assert_allclose(gradient[part], expected[part], atol=1e-5 * np.abs(expected[part]).max())


@pytest.mark.parametrize(
    "layers",
    [
        [Layer(channels=5, kernel=1, stride=2), Layer(channels=3, kernel=5, relu=False)],
        [Layer(channels=4, kernel=5, stride=2), Layer(channels=6, kernel=3, stride=4), Layer(channels=2)],
        [Layer(channels=4, kernel=7, stride=4, norm=True), Layer(channels=3, kernel=1, relu=False)],
    ],
)
def test_gradient_of_other_chains_equals_autograd(tmp_path: Path, layers: list[Layer]) -> None:
    """Kernels smaller and larger than the stride, a ReLU at the end, folded norms."""
    encoder = ConvolutionEncoder(layers)
    encoder.initialise(4)
    module = encoder.eval().folded()
    bundle = export_encoder(encoder, "other", tmp_path / "e", image_size=SIZE)
    v = vector(bundle, 1)
    expected = autograd(module, frames(1), v)
    gradient = Encoder(bundle, mode="rebuild").vjp(bundle.theta0, frames(1), v)
    np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max())


def test_gradient_is_the_slope_of_the_features(bundle: EncoderBundle) -> None:
    """Against central differences of the forward graph, with nothing of torch in between."""
    encoder = Encoder(bundle, mode="bind")
    v = vector(bundle, 2)
    gradient = encoder.vjp(bundle.theta0, frames(2), v).astype(np.float64)
    random = np.random.default_rng(6)
    for _ in range(3):
        direction = random.standard_normal(bundle.theta0.size).astype(np.float32)
        step = np.float32(1e-4) * direction
        rise = encoder.forward(bundle.theta0 + step, frames(2)).astype(np.float64) - encoder.forward(
            bundle.theta0 - step, frames(2)
        )
        # a few ReLUs switch within the step
        assert (rise * v).sum() / 2e-4 == pytest.approx(
            gradient @ direction, abs=0.02 * np.linalg.norm(gradient)
        )


@pytest.mark.parametrize("mode", ["bind", "rebuild"])
def test_linearisation_has_the_features_and_pulls_back_any_vector(bundle: EncoderBundle, mode: str) -> None:
    encoder = Encoder(bundle, mode=mode)
    theta = bundle.theta0.copy()
    linearised = encoder.linearise(theta, frames(3))
    np.testing.assert_allclose(linearised.features_BCHW, encoder.forward(theta, frames(3)), atol=1e-6)
    v, w = vector(bundle, 3), vector(bundle, 3, seed=2)
    expected = encoder.vjp(theta, frames(3), v)
    theta[:] = 0  # the linearisation keeps its own
    assert np.array_equal(linearised.pull_back(v), expected)
    sum_of_both = linearised.pull_back(v) + linearised.pull_back(w)
    np.testing.assert_allclose(
        linearised.pull_back(v + w), sum_of_both, atol=1e-5 * np.abs(sum_of_both).max()
    )


def test_gradient_is_summed_over_frames(bundle: EncoderBundle) -> None:
    encoder = Encoder(bundle, mode="rebuild")
    v = vector(bundle, 3)
    together = encoder.vjp(bundle.theta0, frames(3), v)
    alone = sum(encoder.vjp(bundle.theta0, frames(3)[[i]], v[[i]]) for i in range(3))
    np.testing.assert_allclose(together, alone, atol=1e-5 * np.abs(together).max())


def test_graph_takes_whole_batches(bundle: EncoderBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """As providers other than the CPU run it."""
    encoder = Encoder(bundle, mode="bind", providers=["CPUExecutionProvider"])
    v = vector(bundle, 3)
    expected = encoder.vjp(bundle.theta0, frames(3), v)
    monkeypatch.setattr("edge_client.encoder.runtime.CPU", "another")
    gradient = encoder.vjp(bundle.theta0, frames(3), v)
    np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max())


def test_gradient_is_bit_identical_between_encoders(bundle: EncoderBundle) -> None:
    v = vector(bundle, 2)
    first = Encoder(bundle, mode="rebuild").vjp(bundle.theta0, frames(2), v)
    assert np.array_equal(first, Encoder(bundle, mode="rebuild").vjp(bundle.theta0, frames(2), v))


def test_bundle_without_vjp_says_so_and_still_runs_forward(bundle: EncoderBundle) -> None:
    kept = {name: bundle.graphs[name] for name in ("forward", "forward_bound")}
    spec = msgspec.structs.replace(bundle.spec, graphs={name: bundle.spec.graphs[name] for name in kept})
    encoder = Encoder(dataclasses.replace(bundle, spec=spec, graphs=kept), mode="bind")
    assert encoder.forward(bundle.theta0, frames(1)).shape == (1, 8, 6, 8)
    with pytest.raises(BundleError, match="encoder stride8-c8 has no VJP; use an estimator that"):
        encoder.vjp(bundle.theta0, frames(1), vector(bundle, 1))


@pytest.mark.parametrize("v", [np.zeros((2, 8, 6, 8), np.float32), np.zeros((1, 8, 6, 8), np.float64)])
def test_vector_of_wrong_shape_or_type_is_rejected(bundle: EncoderBundle, v: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"v must be float32 \(1, 8, 6, 8\), got"):
        Encoder(bundle, mode="bind").vjp(bundle.theta0, frames(1), v)
    with pytest.raises(ValueError, match=r"v must be float32 \(1, 8, 6, 8\), got"):
        Encoder(bundle, mode="bind").linearise(bundle.theta0, frames(1)).pull_back(v)
