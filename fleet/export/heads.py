"""The local head: a small network behind the encoder by which a vehicle learns from its own labels alone.

Shapes: B frames, C channels, K classes, H W feature rows and columns, h w logit rows and columns.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from cloud_server.networks.spec import LOGIT_STRIDE
from protocol.errors import SettingError
from protocol.noise import derive_seed, uniform


class HeadModule(nn.Module):
    """features_BCHW → logits_BKhw at a quarter of the image.

    Normalisation, a 3x3 convolution, depthwise-separable residual blocks of growing dilation, a 1x1
    convolution and a pixel shuffle. A local head serves training alone: every BatchNorm takes the statistics
    of the batch and keeps none. A surrogate's are fixed once and for all (`settle`).

    Attributes:
        channels: C.
        classes: K.
        width: channels inside.
        depth: residual blocks, of dilation 2, 4, 8, …
        enlargement: logits per feature cell along each side.
        is_fixed: whether normalisation is by constants, once it has been settled.
    """

    def __init__(
        self, channels: int, classes: int, *, stride: int, width: int, depth: int, fixed: bool = False
    ) -> None:
        """`stride`: image pixels per feature cell along each side; `fixed`: a surrogate's normalisation.

        Raises:
            SettingError: a width below 1, a depth below 0, or a stride that is no multiple of 4.
        """
        super().__init__()
        if width < 1 or depth < 0:
            raise SettingError(
                f"a local head needs a width of 1 and a depth of 0 at least, got {width}, {depth}"
            )
        if stride % LOGIT_STRIDE:
            raise SettingError(
                f"a local head takes features of a stride that is a multiple of {LOGIT_STRIDE}, got {stride}"
            )
        self.channels = channels
        self.classes = classes
        self.width = width
        self.depth = depth
        self.enlargement = stride // LOGIT_STRIDE
        self.is_fixed = fixed
        self.input_norm = _norm(channels, fixed)
        self.entry = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.entry_norm = _norm(width, fixed)
        self.blocks = nn.ModuleList(_Block(width, dilation, fixed) for dilation in self.dilations)
        self.classify = nn.Conv2d(width, classes * self.enlargement**2, 1)

    @property
    def dilations(self) -> tuple[int, ...]:
        """Of the residual blocks."""
        return tuple(2 ** (index + 1) for index in range(self.depth))

    def forward(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        x_BWHW = F.relu(self.entry_norm(self.entry(self.input_norm(features_BCHW))))
        for block in self.blocks:
            x_BWHW = block(x_BWHW)
        return F.pixel_shuffle(self.classify(x_BWHW), self.enlargement)

    def initialise(self, seed: int) -> None:
        """Draw weights that keep the variance (He et al., 2015), the same on every machine; biases zero."""
        for index, (name, parameter) in enumerate(self.named_parameters()):
            if parameter.dim() < 4:
                continue
            gain = 1.0 if name.startswith("classify") else 2.0
            bound = math.sqrt(3 * gain / math.prod(parameter.shape[1:]))
            drawn = bound * (2 * uniform(derive_seed(seed, "local-head", index), parameter.numel()) - 1)
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(drawn).view_as(parameter))
        with torch.no_grad():
            self.classify.get_parameter("bias").zero_()

    def settle(self, features_BCHW: torch.Tensor) -> None:
        """Fix every normalisation at the statistics of these features: from now on it is in evaluation mode.

        Of a head whose normalisation is `fixed` alone.
        """
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.track_running_stats
                module.reset_running_stats()
                module.momentum = None  # the plain mean over all calls
        self.train()
        with torch.no_grad():
            self(features_BCHW)
        self.eval()


class _Block(nn.Module):
    """x + ReLU(norm(pointwise(depthwise(x)))), the depthwise convolution dilated."""

    def __init__(self, width: int, dilation: int, fixed: bool) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            width, width, 3, padding=dilation, dilation=dilation, groups=width, bias=False
        )
        self.pointwise = nn.Conv2d(width, width, 1, bias=False)
        self.norm = _norm(width, fixed)

    def forward(self, x_BWHW: torch.Tensor) -> torch.Tensor:
        return x_BWHW + F.relu(self.norm(self.pointwise(self.depthwise(x_BWHW))))


def _norm(channels: int, fixed: bool) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, track_running_stats=fixed)


def build_head(
    channels: int, classes: int, *, stride: int, width: int, depth: int, seed: int, fixed: bool = False
) -> HeadModule:
    """A freshly initialised head; the same seed gives the same weights on every machine.

    Raises:
        SettingError: see `HeadModule`.
    """
    head = HeadModule(channels, classes, stride=stride, width=width, depth=depth, fixed=fixed)
    head.initialise(seed)
    return head
