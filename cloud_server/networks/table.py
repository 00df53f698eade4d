"""Every network of ours that a scenario can name; torch is loaded when one is built.

Legend: B frames, C feature channels, H W feature rows and columns, K classes, h w logit rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from cloud_server.networks.spec import BuildsNetwork, NetworkSpec
from protocol.doors import Door

if TYPE_CHECKING:
    from torch import nn


def _compact(spec: NetworkSpec) -> nn.Module:
    from cloud_server.networks.compact import build_compact

    return build_compact(spec)


def _lite0_unet(spec: NetworkSpec) -> nn.Module:
    from cloud_server.networks.lite0_unet import build_lite0_unet

    return build_lite0_unet(spec)


def _segformer(size: Mapping[str, Any], spec: NetworkSpec) -> nn.Module:
    from cloud_server.networks.segformer import build_segformer

    return build_segformer(size, spec)


_SEGFORMER_SIZES: dict[str, dict[str, Any]] = {
    "b0": {"hidden_sizes": [32, 64, 160, 256], "depths": [2, 2, 2, 2], "decoder_hidden_size": 256},
    "b1": {"hidden_sizes": [64, 128, 320, 512], "depths": [2, 2, 2, 2], "decoder_hidden_size": 256},
    "b2": {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 4, 6, 3], "decoder_hidden_size": 768},
    "b3": {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 4, 18, 3], "decoder_hidden_size": 768},
}
"""Table 6 of the SegFormer paper (Xie et al., NeurIPS 2021), as arguments of `SegformerConfig`."""

NETWORKS: dict[str, BuildsNetwork] = {
    "compact": _compact,
    "lite0-unet": _lite0_unet,
    **{f"segformer-{name}": partial(_segformer, size) for name, size in _SEGFORMER_SIZES.items()},
}
"""Name to a function that builds it."""

NETWORK_DOOR: Door[BuildsNetwork] = Door("network", BuildsNetwork, NETWORKS)  # type: ignore[type-abstract]
