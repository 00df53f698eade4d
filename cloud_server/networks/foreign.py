"""Somebody else's network: what it may give, and what is refused before anything starts.

Legend: B frames, C feature channels, H W feature rows and columns, K classes, h w logit rows and columns.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cloud_server.networks.spec import NetworkSpec

log = logging.getLogger("cloud_server")

Refuse = Callable[[str], Exception]
"""Makes the error of a reason."""

_TRIED_FRAMES = 2
"""Enough for a BatchNorm in training."""
_FIELD = "out"
"""Under which torchvision's segmentation models give their logits."""
_NAMED = 3


class Fitted(nn.Module):
    """A network whose output is not plainly ours: its logits taken out, as float32, and resized to ours."""

    def __init__(self, network: nn.Module, size_hw: tuple[int, int]) -> None:
        super().__init__()
        self.network = network
        self.size_hw = size_hw

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Return logits_BKhw, float32."""
        logits_BKhw: Tensor = logits_of(self.network(features_BCHW)).float()
        if tuple(logits_BKhw.shape[-2:]) == self.size_hw:
            return logits_BKhw
        return functional.interpolate(logits_BKhw, size=self.size_hw, mode="bilinear", align_corners=False)


def logits_of(output: Any) -> Any:
    """The tensor in what a network gives: itself, `['out']` as torchvision's, `.logits` as transformers'."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and _FIELD in output:
        return output[_FIELD]
    return getattr(output, "logits", output)


def fitted(network: Any, spec: NetworkSpec, refuse: Refuse) -> nn.Module:
    """The network, or one around it that gives what training needs; tried forward and back on a copy.

    A parameter that gets no gradient is told of in the log.

    Raises:
        Exception: as `refuse` makes it: it is no module, or its logits or gradients are not what is needed.
    """
    if not isinstance(network, nn.Module):
        raise refuse(f"must return a torch.nn.Module, got {type(network).__name__}")
    tried = copy.deepcopy(network)
    features_BCHW = torch.randn(_TRIED_FRAMES, *spec.feature_shape, requires_grad=True)
    plain = True
    for training in (True, False):
        output = tried.train(training)(features_BCHW)
        logits = logits_of(output)
        _check(output, logits, features_BCHW, spec, refuse)
        plain = plain and output is logits and tuple(logits.shape[1:]) == spec.logit_shape
        plain = plain and logits.dtype == torch.float32
    size_hw = spec.logit_shape[1:]
    _try_to_learn(Fitted(tried, size_hw), features_BCHW, refuse)
    return network if plain else Fitted(network, size_hw)


def _check(output: Any, logits: Any, features_BCHW: Tensor, spec: NetworkSpec, refuse: Refuse) -> None:
    expected = (_TRIED_FRAMES, *spec.logit_shape)
    if not isinstance(logits, Tensor):
        raise refuse(
            f"must give a tensor of logits, a dictionary with {_FIELD!r} or an object with .logits; gave "
            f"{_described(output)}"
        )
    given = f"{str(logits.dtype).removeprefix('torch.')} {tuple(logits.shape)}"
    wanted = f"must give logits {expected} of features {tuple(features_BCHW.shape)}"
    if logits.dim() != 4 or len(logits) != _TRIED_FRAMES or not logits.is_floating_point():
        raise refuse(f"{wanted}, gave {given}")
    if logits.shape[1] != spec.num_classes:
        raise refuse(f"gives {logits.shape[1]} classes, the labels have {spec.num_classes}: {wanted}")
    if not _same_proportions(logits.shape[-2:], spec):
        raise refuse(
            f"{wanted}, or any size that covers the frame in the same proportions, which is then resized; "
            f"gave {given}"
        )
    if not torch.isfinite(logits).all():
        raise refuse("gave logits that are not finite")


def _same_proportions(size_hw: Sequence[int], spec: NetworkSpec) -> bool:
    """Whether some whole stride, or our own size enlarged, explains both sides, to a cell of rounding."""
    image = [side * spec.feature_stride for side in spec.feature_shape[1:]]
    strides = [side / cells for side, cells in zip(image, size_hw, strict=True)]
    finer, coarser = min(strides), max(strides)
    return all(
        abs(side / stride - cells) < 1 + 1e-6
        for stride in (finer, coarser)
        for side, cells in zip(image, size_hw, strict=True)
    )


def _described(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a dictionary with {', '.join(map(repr, output)) or 'nothing'}"
    if isinstance(output, tuple | list):
        kinds = sorted({type(item).__name__ for item in output})
        return f"a {type(output).__name__} of {len(output)} ({', '.join(kinds)}): put a head behind it"
    return type(output).__name__


def _try_to_learn(network: nn.Module, features_BCHW: Tensor, refuse: Refuse) -> None:
    learning = {name: value for name, value in network.named_parameters() if value.requires_grad}
    if not learning:
        raise refuse("has no parameter that learns")
    network.train()(features_BCHW).square().mean().backward()
    if features_BCHW.grad is None or not torch.isfinite(features_BCHW.grad).all():
        raise refuse("gives its features no finite gradient")
    still = [name.removeprefix("network.") for name, value in learning.items() if value.grad is None]
    if still:
        more = f" and {len(still) - _NAMED} more" if len(still) > _NAMED else ""
        log.warning(
            "%s: no gradient reaches %s%s; they stay as they are",
            refuse("parameters that don't learn"),
            ", ".join(still[:_NAMED]),
            more,
        )
