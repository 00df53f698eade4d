"""Encoders that are a chain of convolutions: a few numbers a layer, and everything else follows.

Shapes: B frames, H by W pixels, C channels; weights are OIHW (output, input, kernel height, width).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from onnx import TensorProto
from torch import nn
from torch.nn import functional as F

from edge_client.encoder.bundle import ParameterSpec
from fleet.export.graphs import PIXEL_MEAN, PIXEL_STD, Graph, pixels_graph
from protocol.errors import SettingError
from protocol.noise import derive_seed, uniform
from protocol.plans.adaptation import SubspaceName


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

    rgb_mean = PIXEL_MEAN
    rgb_std = PIXEL_STD
    subspace: SubspaceName = "all"
    """What learns where nobody says."""
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

    def forward_graph(self, image_size: tuple[int, int]) -> Graph:
        """`image_BHWC` uint8 RGB to `features_BCHW` float32; without BatchNorm, see `folded`.

        Layer i reads `x{i}` and writes `x{i+1}`, the last one `features_BCHW`.

        Args:
            image_size: width and height.
        """
        graph = pixels_graph(image_size, self.rgb_mean, self.rgb_std)
        width, height = image_size
        for index, layer in enumerate(self.layers):
            output = "features_BCHW" if index == len(self.layers) - 1 else f"x{index + 1}"
            graph.add(
                "Conv",
                [f"x{index}", f"conv{index}.weight", f"conv{index}.bias"],
                f"z{index}" if layer.relu else output,
                kernel_shape=[layer.kernel] * 2,
                strides=[layer.stride] * 2,
                pads=[layer.kernel // 2] * 4,
            )
            if layer.relu:
                graph.add("Relu", [f"z{index}"], output)
            width, height = width // layer.stride, height // layer.stride
        graph.outputs = [("features_BCHW", TensorProto.FLOAT, ["B", self.channels, height, width])]
        return graph

    def projection(self) -> tuple[str, ...]:
        """Names of the parameters of its projection: a chain has none."""
        return ()

    def parameter_specs(self) -> tuple[ParameterSpec, ...]:
        """What θ consists of, in the order of `parameters()`."""
        specs: list[ParameterSpec] = []
        offset = 0
        for name, parameter in self.named_parameters():
            _, layer, kind = name.split(".")
            specs.append(
                ParameterSpec(
                    name=f"conv{layer}.{kind}",
                    shape=tuple(parameter.shape),
                    offset=offset,
                    kind="weight" if kind == "weight" else "bias",
                )
            )
            offset += parameter.numel()
        return tuple(specs)
