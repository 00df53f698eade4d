"""The cloud's half of the segmentation network by name: from features to logits at a quarter of the image.

Legend: B frames, C feature channels, H W feature rows and columns, K classes, h w logit rows and columns.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import nn

from cloud_server.networks.compact import build_compact
from cloud_server.networks.segformer import SEGFORMER_SIZES, build_segformer
from cloud_server.networks.spec import BuildsNetwork, NetworkSpec
from protocol.errors import SettingError

NETWORKS: dict[str, BuildsNetwork] = {
    "compact": build_compact,
    **{f"segformer-{size}": partial(build_segformer, size) for size in SEGFORMER_SIZES},
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
        name: a key of `NETWORKS`.
        feature_shape: C, H, W of one frame's features.
        feature_stride: image pixels per feature cell, one of `FEATURE_STRIDES`.
        num_classes: K.
        seed: decides the initial weights, those that don't come from `weights`.
        weights: a local folder of pretrained weights (SegFormer, as saved by transformers).

    Raises:
        SettingError: unknown name, an argument out of range, or a missing optional
            dependency.
        OSError: `weights` can't be read.
    """
    if name not in NETWORKS:
        raise SettingError(f"unknown network {name!r}, expected one of: {', '.join(NETWORKS)}")
    spec = NetworkSpec(
        feature_shape=feature_shape, feature_stride=feature_stride, num_classes=num_classes, weights=weights
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[name](spec)
