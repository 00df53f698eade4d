"""Encoders of somebody else's, as tests need them: small, and of the operators that real ones have."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    """As in ResNet: 3x3 convolutions without bias, BatchNorm, ReLU, a shortcut."""

    def __init__(self, channels: int, outs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, outs, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outs)
        self.second = nn.Conv2d(outs, outs, 3, 1, 1, bias=False)
        self.other_norm = nn.BatchNorm2d(outs)
        self.shortcut = nn.Conv2d(channels, outs, 1, stride)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        y_BCHW = F.relu(self.norm(self.first(x_BCHW)))
        return F.relu(self.other_norm(self.second(y_BCHW)) + self.shortcut(x_BCHW))


def residual() -> nn.Module:
    """ReLU, pooling, residual additions, BatchNorm: stride 8."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        Residual(8, 12, 2),
        nn.Conv2d(12, 6, 1),
    )


class Mobile(nn.Module):
    """As in MobileNetV3: depthwise convolutions, hard-swish, squeeze and excite, two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.depthwise = nn.Conv2d(8, 8, 5, 1, 2, groups=8)
        self.squeeze = nn.Conv2d(8, 4, 1)
        self.excite = nn.Conv2d(4, 8, 1)
        self.reduce = nn.Conv2d(16, 4, 3, 2, 1)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        x_BCHW = F.hardswish(self.stem(x_BCHW))
        y_BCHW = F.hardswish(self.depthwise(x_BCHW))
        weight = F.hardsigmoid(self.excite(F.relu(self.squeeze(y_BCHW.mean((2, 3), keepdim=True)))))
        features_BCHW: torch.Tensor = self.reduce(torch.cat([y_BCHW * weight, F.silu(x_BCHW)], 1))
        return features_BCHW
