"""One network for a fleet whose vehicles' encoders give features of several shapes.

Legend: B frames, C channels, H W rows and columns; c, h, w those of another shape; K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from cloud_server.networks.build import build_network
from cloud_server.networks.spec import STATISTICS_MOMENTUM
from protocol.noise import derive_seed

Shape = tuple[int, int, int]
"""C, H, W of one frame's features."""


class InputStem(nn.Module):
    """Brings features of another shape to the one that the shared network was built for."""

    def __init__(self, given: Shape, wanted: Shape) -> None:
        super().__init__()
        self.size_HW = wanted[1:]
        self.shrinks = given[1] * given[2] > wanted[1] * wanted[2]
        self.normalise = nn.BatchNorm2d(given[0], momentum=STATISTICS_MOMENTUM)
        self.convolution = nn.Conv2d(given[0], wanted[0], 3, padding=1)

    def forward(self, features_Bchw: Tensor) -> Tensor:
        """Return features_BCHW."""
        x = self.normalise(features_Bchw)
        if x.shape[-2:] != self.size_HW:
            x = (
                functional.adaptive_avg_pool2d(x, self.size_HW)
                if self.shrinks
                else functional.interpolate(x, size=self.size_HW, mode="bilinear", align_corners=False)
            )
        features_BCHW: Tensor = self.convolution(x)
        return features_BCHW


class ManyInputs(nn.Module):
    """A shared network with a stem before it for each feature shape but its own."""

    def __init__(self, network: nn.Module, own: Shape, others: Sequence[Shape]) -> None:
        super().__init__()
        self.network = network
        self.stems = nn.ModuleDict({_name(shape): InputStem(shape, own) for shape in others})

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Return logits_BKhw of features of any of the shapes, all frames of one."""
        name = _name(tuple(features_BCHW.shape[1:]))
        if name in self.stems:
            features_BCHW = self.stems[name](features_BCHW)
        logits_BKhw: Tensor = self.network(features_BCHW)
        return logits_BKhw


def build_shared_network(
    name: str,
    *,
    feature_shapes: Sequence[Shape],
    image_size: tuple[int, int],
    num_classes: int,
    seed: int,
    weights: Path | None = None,
) -> nn.Module:
    """The network for features of any of `feature_shapes`, of which some may be equal.

    It is built for the shape with the most numbers, the first of those, so that the stems lose least. For a
    single shape this is `build_network`, which tells the rest about the arguments and errors.

    Args:
        image_size: width and height in pixels of the frames behind the features, the same for all shapes.
    """
    shapes = list(dict.fromkeys(feature_shapes))
    own = max(shapes, key=math.prod)
    network = build_network(
        name,
        feature_shape=own,
        feature_stride=round(image_size[0] / own[2]),
        num_classes=num_classes,
        seed=seed,
        weights=weights,
    )
    others = [shape for shape in shapes if shape != own]
    if not others:
        return network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "stems") % 2**63)
        return ManyInputs(network, own, others)


def _name(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
