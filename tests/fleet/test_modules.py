"""Any torch module as an encoder: exported with its way back as autograd has it, or refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch_modules import Mobile, residual

from edge_client.encoder.runtime import Encoder
from fleet.export.bundle import export_encoder
from fleet.export.errors import ExportError
from fleet.export.modules import ModuleEncoder

SIZE = (64, 48)


@pytest.mark.parametrize(("build", "stride", "channels"), [(residual, 8, 6), (Mobile, 4, 4)])
def test_features_and_gradient_are_torchs(
    tmp_path: Path, build: Callable[[], nn.Module], stride: int, channels: int
) -> None:
    encoder = ModuleEncoder(build)
    encoder.initialise(1)
    assert (encoder.stride, encoder.channels) == (stride, channels)
    bundle = export_encoder(encoder, "theirs", tmp_path / "e", image_size=SIZE)
    assert bundle.spec.feature_shape == (channels, SIZE[1] // stride, SIZE[0] // stride)
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (3, SIZE[1], SIZE[0], 3), dtype=np.uint8)
    plain = encoder.folded()
    expected = plain(torch.from_numpy(image))
    largest = float(expected.detach().abs().max())
    v = random.standard_normal(tuple(expected.shape)).astype(np.float32)
    gradients = torch.autograd.grad(expected, list(plain.parameters()), torch.from_numpy(v))
    gradient = torch.cat([part.ravel() for part in gradients]).numpy()
    onnx_encoder = Encoder(bundle, mode="rebuild")
    features = onnx_encoder.forward(bundle.theta0, image)
    np.testing.assert_allclose(features, expected.detach().numpy(), atol=1e-5 * largest)
    found = onnx_encoder.vjp(bundle.theta0, image, v)
    assert np.abs(found - gradient).max() <= 1e-5 * np.abs(gradient).max()


def test_folding_leaves_the_function_and_no_batch_norm() -> None:
    encoder = ModuleEncoder(residual)
    encoder.initialise(2)
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.uniform_(-1, 1)
                module.running_var.uniform_(0.5, 2)
    plain = encoder.folded()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    image = torch.randint(0, 256, (1, 48, 64, 3), dtype=torch.uint8)
    assert torch.allclose(plain(image), encoder(image), atol=1e-5)


def test_a_seed_gives_the_same_weights_and_another_seed_others() -> None:
    encoders = [ModuleEncoder(Mobile) for _ in range(3)]
    for encoder, seed in zip(encoders, (4, 4, 5), strict=True):
        encoder.initialise(seed)
    first, same, other = (nn.utils.parameters_to_vector(encoder.parameters()) for encoder in encoders)
    assert torch.equal(first, same) and not torch.equal(first, other)


class Idle(nn.Module):
    """With a parameter that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Conv2d(3, 4, 2, 2)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        features_BCHW: torch.Tensor = self.used(x_BCHW)
        return features_BCHW


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Flatten(), r"features \(1, C, H', W'\), got \(1, 12288\)"),
        (lambda: nn.Conv2d(3, 4, 3), "whole stride.* became 62x62 cells"),
        (lambda: nn.AdaptiveAvgPool2d((8, 4)), "became 8x4 cells"),
        (lambda: nn.MaxPool2d(4), "has no parameters"),
        (Idle, "parameter 'unused' has no part in the features"),
    ],
)
def test_module_that_gives_no_features_is_refused(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        ModuleEncoder(build)


def test_module_without_a_way_back_is_refused(tmp_path: Path) -> None:
    encoder = ModuleEncoder(lambda: nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.GELU()))
    with pytest.raises(ExportError, match="no way back through operator Erf"):
        export_encoder(encoder, "theirs", tmp_path / "e", image_size=SIZE)
    assert list(tmp_path.iterdir()) == []
