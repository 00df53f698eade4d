"""The cloud's half of the segmentation network: from features to logits at a quarter of the image size.

Legend: B frames, C feature channels, H W feature rows and columns, K classes, h w logit rows and columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from cloud_server.networks.segformer import SEGFORMER_SIZES, build_segformer

LOGIT_STRIDE = 4
"""Image pixels per logit, both ways."""

STATISTICS_MOMENTUM = 0.01
"""Of BatchNorm's running statistics, a tenth of torch's default. Vehicles have their turns one after the
other: statistics that follow the latest batches closely would be those of the last vehicle alone."""

FEATURE_STRIDES = (1, 2, 4, 8, 16, 32)

_WIDTH_AT_STRIDE = {4: 32, 8: 64, 16: 64, 32: 96}
_MIN_LEVEL_SIDE = 2


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """What a network must accept and produce."""

    feature_shape: tuple[int, int, int]
    """C, H, W of one frame's features."""
    feature_stride: int
    """Image pixels per feature cell, one of `FEATURE_STRIDES`."""
    num_classes: int
    weights: Path | None
    """A local folder of pretrained weights to start from, or nothing for a random start."""

    def __post_init__(self) -> None:
        if len(self.feature_shape) != 3 or min(self.feature_shape) < 1:
            raise ValueError(f"a feature shape is three positive numbers C, H, W, got {self.feature_shape}")
        if self.feature_stride not in FEATURE_STRIDES:
            raise ValueError(f"feature stride must be one of {FEATURE_STRIDES}, got {self.feature_stride}")
        if not 2 <= self.num_classes <= 255:
            raise ValueError(f"number of classes must be 2 to 255, got {self.num_classes}")


class CompactNetwork(nn.Module):
    """A small feature pyramid for training on a CPU.

    The features are normalised (finer ones than stride 4 first averaged down to it), then go through two
    convolutions at each stride down to 32 and back up over skip connections; where the finest stride is
    coarser than that of the logits, a pixel shuffle makes up for it. About 0.34 M parameters at stride 8.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        channels, height, width = spec.feature_shape
        stride = max(spec.feature_stride, LOGIT_STRIDE)
        pool = stride // spec.feature_stride
        self.pool = nn.AvgPool2d(pool, ceil_mode=True) if pool > 1 else nn.Identity()
        self.normalise = nn.BatchNorm2d(channels, momentum=STATISTICS_MOMENTUM)
        widths = _level_widths(stride, -(-height // pool), -(-width // pool))
        self.down = nn.ModuleList()
        for level, (before, after) in enumerate(itertools.pairwise([channels, *widths])):
            self.down.append(
                nn.Sequential(
                    _convolution(before, after, stride=2 if level else 1), _convolution(after, after)
                )
            )
        self.lateral = nn.ModuleList(_convolution(b, a, kernel=1) for a, b in itertools.pairwise(widths))
        self.merge = nn.ModuleList(_convolution(a, a) for a in widths[:-1])
        upscale = stride // LOGIT_STRIDE
        self.head = nn.Sequential(
            nn.Conv2d(widths[0], spec.num_classes * upscale**2, 1), nn.PixelShuffle(upscale)
        )

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Return logits_BKhw, float32."""
        x = self.normalise(self.pool(features_BCHW))
        levels = []
        for down in self.down:
            x = down(x)
            levels.append(x)
        for level in reversed(range(len(self.merge))):
            skip = levels[level]
            above = functional.interpolate(
                self.lateral[level](x), size=skip.shape[-2:], mode="bilinear", align_corners=False
            )
            x = self.merge[level](skip + above)
        logits_BKhw: Tensor = self.head(x)
        return logits_BKhw


def _level_widths(stride: int, height: int, width: int) -> list[int]:
    """Channels of each level, as long as the map is large enough for the BatchNorm of a single frame."""
    widths = [_WIDTH_AT_STRIDE[stride]]
    while (stride := 2 * stride) in _WIDTH_AT_STRIDE:
        height, width = -(-height // 2), -(-width // 2)
        if min(height, width) < _MIN_LEVEL_SIDE:
            break
        widths.append(_WIDTH_AT_STRIDE[stride])
    return widths


def _convolution(before: int, after: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(after, momentum=STATISTICS_MOMENTUM),
        nn.ReLU(inplace=True),
    )


def _build_compact(spec: NetworkSpec) -> nn.Module:
    if spec.weights is not None:
        raise ValueError(f"the compact network takes no pretrained weights, got {spec.weights}")
    return CompactNetwork(spec)


def _segformer_builder(size: str) -> Callable[[NetworkSpec], nn.Module]:
    def build(spec: NetworkSpec) -> nn.Module:
        return build_segformer(
            size,
            channels=spec.feature_shape[0],
            feature_stride=spec.feature_stride,
            num_classes=spec.num_classes,
            weights=spec.weights,
        )

    return build


NETWORKS: dict[str, Callable[[NetworkSpec], nn.Module]] = {
    "compact": _build_compact,
    **{f"segformer-{size}": _segformer_builder(size) for size in SEGFORMER_SIZES},
}
"""Every network that a scenario can name."""


def build_network(
    name: str,
    *,
    feature_shape: tuple[int, int, int],
    feature_stride: int,
    num_classes: int,
    seed: int,
    weights: Path | None = None,
) -> nn.Module:
    """Return a network features_BCHW (float32) → logits_BKhw at a quarter of the image size.

    h, w are ⌈H · feature_stride / 4⌉ and the same for W. The same arguments give the same weights; torch's
    global generator is left as it was.

    Args:
        feature_shape: C, H, W of one frame's features.
        feature_stride: image pixels per feature cell, one of `FEATURE_STRIDES`.
        num_classes: K.
        seed: decides the initial weights, those that don't come from `weights`.
        weights: a local folder of pretrained weights (SegFormer, as saved by transformers).

    Raises:
        ValueError: unknown name, an argument out of range, or a missing optional dependency.
        OSError: `weights` can't be read.
    """
    try:
        build = NETWORKS[name]
    except KeyError:
        raise ValueError(f"unknown network {name!r}, expected one of: {', '.join(NETWORKS)}") from None
    spec = NetworkSpec(
        feature_shape=feature_shape, feature_stride=feature_stride, num_classes=num_classes, weights=weights
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(spec)
