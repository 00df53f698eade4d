"""A small network for training on a CPU.

Legend: B frames, C feature channels, H W feature rows and columns, K classes, h w logit rows and columns.
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn
from torch.nn import functional

from cloud_server.networks.spec import LOGIT_STRIDE, STATISTICS_MOMENTUM, NetworkSpec
from protocol.errors import SettingError

_WIDTH_AT_STRIDE = {4: 32, 8: 64, 16: 64, 32: 96}
_MIN_LEVEL_SIDE = 2


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


def build_compact(spec: NetworkSpec) -> nn.Module:
    """The row of the table.

    Raises:
        SettingError: pretrained weights are given, which it doesn't take.
    """
    if spec.weights is not None:
        raise SettingError(f"the compact network takes no pretrained weights, got {spec.weights}")
    return CompactNetwork(spec)
