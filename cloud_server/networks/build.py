"""The cloud's half of the segmentation network by name: from features to logits at a quarter of the image.

Legend: B frames, C feature channels, H W feature rows and columns, K classes, h w logit rows and columns.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import nn

from cloud_server.networks.foreign import fitted
from cloud_server.networks.spec import NetworkSpec
from cloud_server.networks.table import NETWORK_DOOR
from protocol.doors import is_foreign


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
    global generator is left as it was. A network that is not ours is tried before it is returned,
    and its logits are resized where they are of another size.

    Args:
        name: a key of `NETWORKS` in `cloud_server.networks.table`, or `package.module:name` of a function as
            `BuildsNetwork` says.
        feature_shape: C, H, W of one frame's features.
        feature_stride: image pixels per feature cell, one of `FEATURE_STRIDES`.
        num_classes: K.
        seed: decides the initial weights, those that don't come from `weights`.
        weights: pretrained weights: a folder (SegFormer, as saved by transformers), or a file of a state dict
            (`lite0-unet`).

    Raises:
        SettingError: nothing that fits is behind the name, an argument out of range, or a missing optional
            dependency.
        OSError: `weights` can't be read.
    """
    build = NETWORK_DOOR.find(name)
    spec = NetworkSpec(
        feature_shape=feature_shape, feature_stride=feature_stride, num_classes=num_classes, weights=weights
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with NETWORK_DOOR.guard(name):
            network = build(spec)
            if is_foreign(name):
                network = fitted(network, spec, partial(NETWORK_DOOR.refuse, name))
    return network
