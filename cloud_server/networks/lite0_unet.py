"""`lite0-unet`: the rest of EfficientNet-Lite0 behind the split, pretrained on ImageNet, and a decoder.

The blocks are those that follow an encoder of the same stride (`fleet/export/lite0.py`), whatever encoder
the features are of. Legend: B frames, C feature channels, H W feature rows and columns, K classes, h w logit
rows and columns.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from cloud_server.networks import lite0
from cloud_server.networks.spec import LOGIT_STRIDE, STATISTICS_MOMENTUM, NetworkSpec

_FIRST_BLOCK = {4: 3, 8: 5, 16: 8, 32: 12}
"""The first block that takes maps of a stride and was trained behind them."""
_WIDTH = {4: 32, 8: 64, 16: 64, 32: 64}
"""Channels of the decoder at a stride."""
_FEWEST_CELLS = 2
"""Of a map along its shorter side: a BatchNorm needs several, also of a single frame."""


class Lite0UNet(nn.Module):
    """A stem brings the features to the channels that the blocks know; a decoder goes back up from them.

    Features are normalised (finer ones than stride 4 first averaged down to it). The decoder adds at each
    stride what the blocks made there, at the first one also the features themselves. A pixel shuffle makes
    up for a first stride that is coarser than the logits'. 3.0 M parameters at stride 8. Maps of any size
    go: what comes from below is resized to what it is added to.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        channels, height, width = spec.feature_shape
        stride = max(spec.feature_stride, LOGIT_STRIDE)
        pool = stride // spec.feature_stride
        self.first_block = _FIRST_BLOCK[stride]
        groups = _groups(self.first_block, -(-height // pool), -(-width // pool))
        known = [lite0.width_before(self.first_block), *(lite0.width_before(stop) for _, stop in groups)]
        strides = [stride]
        for first, _ in groups:
            strides.append(strides[-1] * lite0.BLOCKS[first].stride)
        widths = [_WIDTH[one] for one in strides]

        self.pool = nn.AvgPool2d(pool, ceil_mode=True) if pool > 1 else nn.Identity()
        self.normalise = nn.BatchNorm2d(channels)
        self.stem = nn.Sequential(nn.Conv2d(channels, known[0], 1, bias=False), nn.BatchNorm2d(known[0]))
        self.levels = nn.ModuleList(lite0.blocks(first, stop) for first, stop in groups)
        self.lateral = nn.ModuleList(
            _convolution(ins, outs, 1) for ins, outs in zip(known, widths, strict=True)
        )
        self.above = nn.ModuleList(
            nn.Identity() if ins == outs else _convolution(ins, outs, 1)
            for ins, outs in zip(widths[1:], widths[:-1], strict=True)
        )
        self.detail = _convolution(channels, widths[0], 3)
        self.merge = nn.ModuleList(_convolution(one, one, 3) for one in widths[:-1])
        upscale = stride // LOGIT_STRIDE
        self.head = nn.Sequential(
            nn.Conv2d(widths[0], spec.num_classes * upscale**2, 1), nn.PixelShuffle(upscale)
        )
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = STATISTICS_MOMENTUM

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Return logits_BKhw, float32."""
        features_BCHW = self.normalise(self.pool(features_BCHW))
        maps = [self.stem(features_BCHW)]
        for level in self.levels:
            maps.append(level(maps[-1]))
        skips = [lateral(one) for lateral, one in zip(self.lateral, maps, strict=True)]
        skips[0] = skips[0] + self.detail(features_BCHW)
        x = skips.pop()
        for number in reversed(range(len(skips))):
            skip = skips[number]
            below = functional.interpolate(
                self.above[number](x), size=skip.shape[-2:], mode="bilinear", align_corners=False
            )
            x = self.merge[number](skip + below)
        logits_BKhw: Tensor = self.head(x)
        return logits_BKhw

    def load_published(self, path: Path) -> None:
        """Take the blocks from a file of a state dict with the published names.

        The stem's output begins with the means and deviations, channel by channel, that the first block was
        trained on.

        Raises:
            SettingError: it can't be read, or holds another network's weights.
        """
        weights = lite0.read_weights(path, "network")
        first = self.first_block
        for level in self.levels:
            assert isinstance(level, nn.Sequential)
            lite0.load_blocks(level, first, weights, str(path))
            first += len(level)
        norm = self.stem[1]
        assert isinstance(norm, nn.BatchNorm2d)
        mean_C, deviation_C = lite0.statistics_before(self.first_block, weights, str(path))
        with torch.no_grad():
            norm.weight.copy_(deviation_C)
            norm.bias.copy_(mean_C)


def _groups(first: int, height: int, width: int) -> list[tuple[int, int]]:
    """First block and the one behind the last of each run of blocks at one stride, for maps of this size."""
    groups: list[tuple[int, int]] = []
    for number in range(first, len(lite0.BLOCKS)):
        if lite0.BLOCKS[number].stride > 1:
            height, width = -(-height // 2), -(-width // 2)
            if min(height, width) < _FEWEST_CELLS:
                break
            groups.append((number, number + 1))
        else:
            begun = groups.pop()[0] if groups else number
            groups.append((begun, number + 1))
    return groups


def _convolution(before: int, after: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )


def build_lite0_unet(spec: NetworkSpec) -> nn.Module:
    """The row of the table; `spec.weights` is a file of a state dict, None = the package's.

    Raises:
        SettingError: the weights are missing, or of another network.
    """
    path = spec.weights or lite0.published_weights("--network-weights")
    network = Lite0UNet(spec)
    network.load_published(path)
    return network
