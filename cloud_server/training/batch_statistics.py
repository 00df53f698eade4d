"""BatchNorm's means and variances on some features alone, under weights that stay as they are.

Source: AdaBN (Li et al., 2017, arXiv 1603.04779).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

_BUFFERS = ("running_mean", "running_var")


def collect_statistics(network: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return the plain average over batches of their own means and variances, each normalised by itself.

    Args:
        network: in evaluation mode, as it is again afterwards, with the statistics that it had.
        batches: features_BCHW.

    Returns:
        Buffers by their names in the network; without those of layers that no batch reaches.
    """
    norms = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats
    }
    before = [
        (module, module.momentum, [buffer.clone() for buffer in module.buffers()])
        for module in norms.values()
    ]
    try:
        for module in norms.values():
            module.reset_running_stats()
            module.momentum = None  # the average of all batches, not one that forgets
            module.train()
        with torch.no_grad():
            for features_BCHW in batches:
                network(features_BCHW)
        return {
            f"{name}.{buffer}": getattr(module, buffer).clone()
            for name, module in norms.items()
            if module.num_batches_tracked
            for buffer in _BUFFERS
        }
    finally:
        for module, momentum, buffers in before:
            module.eval()
            module.momentum = momentum
            for buffer, value in zip(module.buffers(), buffers, strict=True):
                buffer.copy_(value)


def mixed_statistics(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """Statistics of a mixture, of which `share` is of `own`, as from `collect_statistics`, the rest of those
    in `weights`: the means' average, and variances with what the means differ by."""
    mixed = {}
    for name in own:
        if name.endswith("running_mean"):
            mixed[name] = torch.lerp(weights[name], own[name], share)
        else:
            mean = name.removesuffix("running_var") + "running_mean"
            between = share * (1 - share) * (own[mean] - weights[mean]) ** 2
            mixed[name] = torch.lerp(weights[name], own[name], share) + between
    return mixed
