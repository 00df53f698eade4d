"""The encoder architectures a vehicle can run, as torch modules, and the table that names them.

Shapes: B frames, H by W pixels, C channels; weights are OIHW (output, input, kernel height, width).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional as F

from protocol.doors import Door
from protocol.errors import SettingError
from protocol.noise import derive_seed, uniform

PIXEL_MEAN = (0.485, 0.456, 0.406)
"""Mean of RGB pixels scaled to [0, 1], over ImageNet."""
PIXEL_STD = (0.229, 0.224, 0.225)
"""Standard deviation of the same."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One convolution with bias and padding kernel // 2, optionally followed by BatchNorm, then by ReLU."""

    channels: int
    """Output channels."""
    kernel: int = 3
    """Kernel height and width in pixels, odd."""
    stride: int = 1
    norm: bool = False
    relu: bool = True

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise SettingError(f"a layer's channels must be at least 1, got {self.channels}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise SettingError(f"a layer's kernel must be odd and at least 1, got {self.kernel}")
        if self.stride < 1:
            raise SettingError(f"a layer's stride must be at least 1, got {self.stride}")


class ConvolutionEncoder(nn.Module):
    """Pixels to features through a chain of convolutions; the ONNX graphs are built from `layers`.

    Attributes:
        layers: the chain, first to last.
        stride: image pixels per feature cell, along each side.
        channels: C of the features.
    """

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        if not layers:
            raise SettingError("an encoder needs at least one layer, got none")
        self.layers = tuple(layers)
        self.stride = math.prod(layer.stride for layer in layers)
        self.channels = layers[-1].channels
        self.convolutions = nn.ModuleList()
        self.norms = nn.ModuleList()
        channels = 3
        for layer in layers:
            self.convolutions.append(
                nn.Conv2d(channels, layer.channels, layer.kernel, layer.stride, padding=layer.kernel // 2)
            )
            self.norms.append(nn.BatchNorm2d(layer.channels) if layer.norm else nn.Identity())
            channels = layer.channels
        self.register_buffer("pixel_mean", 255 * torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", 255 * torch.tensor(PIXEL_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, image_BHWC: torch.Tensor) -> torch.Tensor:
        """Features float32 (B, C, H / stride, W / stride) of RGB pixels 0 to 255 (uint8 or float)."""
        pixels_BCHW = image_BHWC.permute(0, 3, 1, 2).to(torch.float32)
        x_BCHW = (pixels_BCHW - self.pixel_mean) / self.pixel_std
        for layer, convolution, norm in zip(self.layers, self.convolutions, self.norms, strict=True):
            x_BCHW = norm(convolution(x_BCHW))
            if layer.relu:
                x_BCHW = F.relu(x_BCHW)
        return x_BCHW

    def initialise(self, seed: int) -> None:
        """Draw weights that keep the variance from layer to layer (He et al., 2015), biases zero.

        The numbers are the same on every machine, which torch's generators don't promise.
        """
        gain = 1.0
        for index, (layer, convolution) in enumerate(zip(self.layers, self.convolutions, strict=True)):
            weight_OIHW = convolution.get_parameter("weight")
            bound = math.sqrt(3 * gain / math.prod(weight_OIHW.shape[1:]))
            drawn = bound * (2 * uniform(derive_seed(seed, "encoder", index), weight_OIHW.numel()) - 1)
            with torch.no_grad():
                weight_OIHW.copy_(torch.from_numpy(drawn).view_as(weight_OIHW))
                convolution.get_parameter("bias").zero_()
            gain = 2.0 if layer.relu else 1.0

    def folded(self) -> ConvolutionEncoder:
        """The same function without BatchNorm layers, which become part of the convolutions before them.

        Its `parameters()`, in order and flattened, are the θ of an encoder bundle. Always a new module.
        """
        plain = ConvolutionEncoder(
            [
                Layer(channels=layer.channels, kernel=layer.kernel, stride=layer.stride, relu=layer.relu)
                for layer in self.layers
            ]
        )
        for source, norm, target in zip(self.convolutions, self.norms, plain.convolutions, strict=True):
            weight_OIHW: torch.Tensor = source.get_parameter("weight")
            bias_O: torch.Tensor = source.get_parameter("bias")
            if isinstance(norm, nn.BatchNorm2d):
                assert norm.running_mean is not None and norm.running_var is not None
                scale_O = norm.weight / torch.sqrt(norm.running_var + norm.eps)
                weight_OIHW = weight_OIHW * scale_O.view(-1, 1, 1, 1)
                bias_O = (bias_O - norm.running_mean) * scale_O + norm.bias
            with torch.no_grad():
                target.get_parameter("weight").copy_(weight_OIHW)
                target.get_parameter("bias").copy_(bias_O)
        return plain.eval()


def _stack(strides: Sequence[int], channels: int) -> ConvolutionEncoder:
    """3x3 convolutions of 16, 32 and `channels` channels, ReLU between them, the last one linear."""
    widths = (16, 32, channels)
    return ConvolutionEncoder(
        [
            Layer(channels=width, stride=stride, relu=index < len(widths) - 1)
            for index, (width, stride) in enumerate(zip(widths, strides, strict=True))
        ]
    )


def _blackfed_double_convolution() -> ConvolutionEncoder:
    """The client of BlackFed (arXiv 2410.24181): 3x3 convolution + BatchNorm + ReLU, then 7x7, 64 channels.

    The paper's client for SegFormer replaces the network's first patch embedding, a 7x7 convolution of
    stride 4; its published code uses stride 1 there. This one has the stride of the embedding that it
    stands in for, so that the network behind it sees the resolution it was designed for.
    """
    return ConvolutionEncoder(
        [Layer(channels=64, norm=True), Layer(channels=64, kernel=7, stride=4, relu=False)]
    )


def check_image_size(image_size: tuple[int, int], name: str, stride: int) -> None:
    """Raise SettingError where frames of this width and height don't divide into feature cells."""
    width, height = image_size
    if min(image_size) < 1 or width % stride or height % stride:
        raise SettingError(
            f"image size {width}x{height} does not fit encoder {name}: "
            f"width and height must be positive multiples of {stride}"
        )


class BuildsEncoder(Protocol):
    """What is behind the name of an architecture."""

    def __call__(self) -> ConvolutionEncoder:
        """A new encoder, not yet initialised."""
        ...


DEFAULT_ENCODER = "stride8-c8"

ENCODERS: dict[str, BuildsEncoder] = {
    "stride8-c4": partial(_stack, (2, 2, 2), 4),
    "stride8-c8": partial(_stack, (2, 2, 2), 8),
    "stride8-c16": partial(_stack, (2, 2, 2), 16),
    "stride4-c8": partial(_stack, (2, 2, 1), 8),
    "blackfed-double-conv": _blackfed_double_convolution,
}
"""Architecture name to a function that builds it."""

ENCODER_DOOR: Door[BuildsEncoder] = Door("encoder", BuildsEncoder, ENCODERS)  # type: ignore[type-abstract]


def architecture(name: str) -> ConvolutionEncoder:
    """A new encoder, not yet initialised.

    Args:
        name: a key of `ENCODERS`, or `package.module:name` of a function that returns a `ConvolutionEncoder`.

    Raises:
        SettingError: nothing that fits is behind the name.
    """
    build = ENCODER_DOOR.find(name)
    with ENCODER_DOOR.guard(name):
        encoder = build()
    if not isinstance(encoder, ConvolutionEncoder):
        raise ENCODER_DOOR.refuse(name, f"must return a ConvolutionEncoder, got {type(encoder).__name__}")
    return encoder


def build_encoder(name: str, seed: int) -> ConvolutionEncoder:
    """A freshly initialised encoder, in evaluation mode.

    Args:
        name: see `architecture`.
        seed: non-negative; the same seed gives the same weights on every machine.

    Raises:
        SettingError: nothing that fits is behind the name, or a negative seed.
    """
    if seed < 0:
        raise SettingError(f"encoder seed must not be negative, got {seed}")
    encoder = architecture(name)
    encoder.initialise(seed)
    return encoder.eval()
