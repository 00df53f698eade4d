"""The cloud's half of the segmentation network by name: from features to logits at a quarter of the image.

Legend: B frames, C feature channels, H W feature rows and columns, K classes, h w logit rows and columns.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import torch
from torch import nn

from cloud_server.networks.compact import build_compact
from cloud_server.networks.segformer import SEGFORMER_SIZES, build_segformer
from cloud_server.networks.spec import BuildsNetwork, NetworkSpec
from protocol.doors import Door, DoorError, is_foreign

_TRIED_FRAMES = 2
"""Enough for a BatchNorm in training."""

NETWORKS: dict[str, BuildsNetwork] = {
    "compact": build_compact,
    **{f"segformer-{size}": partial(build_segformer, size) for size in SEGFORMER_SIZES},
}
"""Every network of ours that a scenario can name."""

NETWORK_DOOR: Door[BuildsNetwork] = Door("network", BuildsNetwork, NETWORKS)  # type: ignore[type-abstract]


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
    global generator is left as it was. A network that is not ours is tried before it is returned.

    Args:
        name: a key of `NETWORKS`, or `package.module:name` of a function as `BuildsNetwork` says.
        feature_shape: C, H, W of one frame's features.
        feature_stride: image pixels per feature cell, one of `FEATURE_STRIDES`.
        num_classes: K.
        seed: decides the initial weights, those that don't come from `weights`.
        weights: a local folder of pretrained weights (SegFormer, as saved by transformers).

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
                _try(name, network, spec)
    return network


def _try(name: str, network: nn.Module, spec: NetworkSpec) -> None:
    """One step forward and back on a copy of somebody else's network.

    Raises:
        DoorError: it is no module, or its logits or gradients are not what training needs.
    """
    if not isinstance(network, nn.Module):
        raise NETWORK_DOOR.refuse(name, f"must return a torch.nn.Module, got {type(network).__name__}")
    tried = copy.deepcopy(network)
    features_BCHW = torch.randn(_TRIED_FRAMES, *spec.feature_shape, requires_grad=True)
    for training in (True, False):
        logits = tried.train(training)(features_BCHW)
        expected = (_TRIED_FRAMES, *spec.logit_shape)
        if not isinstance(logits, torch.Tensor):
            raise NETWORK_DOOR.refuse(name, f"must give a tensor of logits, gave {type(logits).__name__}")
        if tuple(logits.shape) != expected or logits.dtype != torch.float32:
            raise NETWORK_DOOR.refuse(
                name,
                f"must give float32 logits {expected} of features {tuple(features_BCHW.shape)}, gave "
                f"{str(logits.dtype).removeprefix('torch.')} {tuple(logits.shape)}",
            )
        if not torch.isfinite(logits).all():
            raise NETWORK_DOOR.refuse(name, "gave logits that are not finite")
    _try_to_learn(name, tried, features_BCHW)


def _try_to_learn(name: str, network: nn.Module, features_BCHW: torch.Tensor) -> None:
    reason: DoorError | None = None
    if not any(parameter.requires_grad for parameter in network.parameters()):
        reason = NETWORK_DOOR.refuse(name, "has no parameter that learns")
    else:
        network.train()(features_BCHW).square().mean().backward()
        if features_BCHW.grad is None or not torch.isfinite(features_BCHW.grad).all():
            reason = NETWORK_DOOR.refuse(name, "gives its features no finite gradient")
    if reason is not None:
        raise reason
