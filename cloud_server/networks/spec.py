"""What a network behind the features must accept and produce."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from protocol.errors import SettingError

if TYPE_CHECKING:  # the table of networks is read without torch
    from torch import nn

LOGIT_STRIDE = 4
"""Image pixels per logit, both ways."""

STATISTICS_MOMENTUM = 0.01
"""Of BatchNorm's running statistics, a tenth of torch's default. Vehicles have their turns one after the
other: statistics that follow the latest batches closely would be those of the last vehicle alone."""

FEATURE_STRIDES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """What a network must accept and produce."""

    feature_shape: tuple[int, int, int]
    """C, H, W of one frame's features."""
    feature_stride: int
    """Image pixels per feature cell, one of `FEATURE_STRIDES`."""
    num_classes: int
    weights: Path | None
    """A local folder or file of pretrained weights to start from; None = those that come with the network,
    or a random start."""

    def __post_init__(self) -> None:
        if len(self.feature_shape) != 3 or min(self.feature_shape) < 1:
            raise SettingError(f"a feature shape is three positive numbers C, H, W, got {self.feature_shape}")
        if self.feature_stride not in FEATURE_STRIDES:
            raise SettingError(f"feature stride must be one of {FEATURE_STRIDES}, got {self.feature_stride}")
        if not 2 <= self.num_classes <= 255:
            raise SettingError(f"number of classes must be 2 to 255, got {self.num_classes}")

    @property
    def logit_shape(self) -> tuple[int, int, int]:
        """K, h, w of one frame's logits: a quarter of the image, rounded up."""
        _, height, width = self.feature_shape
        stride = self.feature_stride
        return self.num_classes, -(-height * stride // LOGIT_STRIDE), -(-width * stride // LOGIT_STRIDE)


class BuildsNetwork(Protocol):
    """What is behind the name of a network."""

    def __call__(self, spec: NetworkSpec) -> nn.Module:
        """A new network features_BCHW (float32) → logits_BKhw; torch's generator is seeded."""
        ...
