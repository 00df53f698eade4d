"""The table of encoder architectures that a vehicle can run, and what stands behind a name.

An encoder is a chain of convolutions (`convolutions.py`), any torch module (`modules.py`) or an ONNX file
(`onnx_encoder.py`). All know their
`stride` and `channels`, draw initial weights from a seed (`initialise`), give the same function without
BatchNorm (`folded`), and write themselves as a graph (`forward_graph`, `parameter_specs`).

Names are read by every command: torch, and with it those files, is loaded when an encoder is built.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, Union

from protocol.doors import MOST_CHARACTERS, Door, file_name
from protocol.errors import SettingError

if TYPE_CHECKING:
    from torch import nn

    from fleet.export.convolutions import ConvolutionEncoder
    from fleet.export.modules import ModuleEncoder
    from fleet.export.onnx_encoder import OnnxEncoder

ImageEncoder: TypeAlias = Union["ConvolutionEncoder", "ModuleEncoder", "OnnxEncoder"]
"""What an encoder is to everything that exports, trains or starts from one."""
ONNX_ENDING = ".onnx"


def _stack(strides: Sequence[int], channels: int) -> ConvolutionEncoder:
    """3x3 convolutions of 16, 32 and `channels` channels, ReLU between them, the last one linear."""
    from fleet.export.convolutions import ConvolutionEncoder, Layer

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
    from fleet.export.convolutions import ConvolutionEncoder, Layer

    return ConvolutionEncoder(
        [Layer(channels=64, norm=True), Layer(channels=64, kernel=7, stride=4, relu=False)]
    )


def _lite0_stride8(weights: Path | None = None) -> ModuleEncoder:
    from fleet.export.lite0 import STRIDE8_BLOCKS, Lite0Encoder

    return Lite0Encoder(STRIDE8_BLOCKS, weights=weights)


def _lite0_stride4(weights: Path | None = None) -> ModuleEncoder:
    from fleet.export.lite0 import STRIDE4_BLOCKS, Lite0Encoder

    return Lite0Encoder(STRIDE4_BLOCKS, weights=weights)


def fitting_size(image_size: tuple[int, int], stride: int) -> tuple[int, int]:
    """The size nearest to this width and height that divides into feature cells, one each way at least.

    Halves go up: 250x190 becomes 248x192 with a stride of 8; what fits already stays.
    """
    width, height = (max(1, (2 * side + stride) // (2 * stride)) * stride for side in image_size)
    return width, height


def resizing_remark(asked: tuple[int, int], fitting: tuple[int, int]) -> str:
    """What a person is told of `fitting_size` where it is another one."""
    return (
        f"{asked[0]}x{asked[1]} does not divide into feature cells of this encoder: it sees frames at "
        f"{fitting[0]}x{fitting[1]}"
    )


def check_image_size(image_size: tuple[int, int], name: str, stride: int) -> None:
    """Raise SettingError where frames of this width and height don't divide into feature cells, or into one.

    One cell is less than heads and networks take: they normalise over the cells of a frame.
    """
    width, height = image_size
    if min(image_size) < 1 or width % stride or height % stride:
        raise SettingError(
            f"image size {width}x{height} does not fit encoder {name}: "
            f"width and height must be positive multiples of {stride}"
        )
    if (width, height) == (stride, stride):
        raise SettingError(
            f"image size {width}x{height} is too small for encoder {name}: one cell of features, of which "
            f"nothing can be learnt; the smallest sizes are {2 * stride}x{stride} and {stride}x{2 * stride}"
        )


class BuildsEncoder(Protocol):
    """What is behind the name of an architecture."""

    def __call__(self) -> ImageEncoder | nn.Module:
        """A new encoder, or a module from normalised image_BCHW to features_BCHW; not yet initialised."""
        ...


DEFAULT_ENCODER = "stride8-c8"

CHAINS: dict[str, BuildsEncoder] = {
    "stride8-c4": partial(_stack, (2, 2, 2), 4),
    "stride8-c8": partial(_stack, (2, 2, 2), 8),
    "stride8-c16": partial(_stack, (2, 2, 2), 16),
    "stride4-c8": partial(_stack, (2, 2, 1), 8),
    "blackfed-double-conv": _blackfed_double_convolution,
}
"""Those that start from a seed."""
PRETRAINED: dict[str, BuildsEncoder] = {
    "efficientnet-lite0-s8": _lite0_stride8,
    "efficientnet-lite0-s4": _lite0_stride4,
}
"""Those that start from weights of ImageNet."""
ENCODERS = CHAINS | PRETRAINED
"""Architecture name to a function that builds it."""

ENCODER_DOOR: Door[BuildsEncoder] = Door(
    "encoder",
    BuildsEncoder,  # type: ignore[type-abstract]
    ENCODERS,
    f"or the path of a file that ends in {ONNX_ENDING}",
)


def is_onnx_file(name: str) -> bool:
    """Whether the name of an encoder is the path of a file."""
    return name.endswith(ONNX_ENDING)


def check_encoder_name(name: str) -> None:
    """Refuse a name behind which nothing can be; a file is looked at when it is needed.

    Raises:
        SettingError: the message lists the known ones.
    """
    if not is_onnx_file(name):
        ENCODER_DOOR.find(name)


def short_name(name: str) -> str:
    """An encoder's name as it is sent over the network: of a file without its folder."""
    return Path(name).name[-MOST_CHARACTERS:] if is_onnx_file(name) else name


def folder_name(name: str) -> str:
    """An encoder's name as a folder can have it, different for different names."""
    if is_onnx_file(name):
        return f"{Path(name).stem}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return file_name(name)


def architecture(
    name: str, weights: Path | None = None, trainable: Sequence[str] | None = None
) -> ImageEncoder:
    """A new encoder, not yet initialised.

    Args:
        name: a key of `ENCODERS`, `package.module:name` of a function that returns a torch module, or the
            path of an ONNX file.
        weights: file of a state dict, for an architecture that takes one (`weights` among its arguments).
        trainable: of an ONNX file: names of the weights that learn, or patterns.

    Raises:
        SettingError: nothing that fits is behind the name, or it takes no weights, or no names of weights.
        OperatorError: its weights can't be had, or the file is no encoder.
    """
    if is_onnx_file(name):
        if weights is not None:
            raise ENCODER_DOOR.refuse(name, f"has its own weights, got {weights}; leave out encoder.weights")
        from fleet.export.onnx_encoder import file_encoder

        return file_encoder(Path(name), trainable)
    if trainable:
        raise ENCODER_DOOR.refuse(
            name,
            f"takes no encoder.trainable, got {', '.join(trainable)}: that is of ONNX files; see "
            f"adaptation.subspace",
        )
    build = ENCODER_DOOR.find(name)
    if weights is not None:
        if "weights" not in inspect.signature(build).parameters:
            raise ENCODER_DOOR.refuse(name, f"takes no weights, got {weights}; leave out encoder.weights")
        build = partial(build, weights=weights)  # type: ignore[call-arg]  # as its signature says
    from torch import nn

    from fleet.export.convolutions import ConvolutionEncoder
    from fleet.export.modules import ModuleEncoder

    with ENCODER_DOOR.guard(name):
        encoder = build()
        if isinstance(encoder, nn.Module) and not isinstance(encoder, ConvolutionEncoder | ModuleEncoder):
            encoder = ModuleEncoder(build)
    if not isinstance(encoder, ConvolutionEncoder | ModuleEncoder):
        raise ENCODER_DOOR.refuse(name, f"must return a torch module, got {type(encoder).__name__}")
    return encoder


def build_encoder(
    name: str, seed: int, weights: Path | None = None, trainable: Sequence[str] | None = None
) -> ImageEncoder:
    """A freshly initialised encoder, in evaluation mode.

    Args:
        name, weights, trainable: see `architecture`.
        seed: non-negative; the same seed gives the same weights on every machine.

    Raises:
        SettingError: nothing that fits is behind the name, or a negative seed.
    """
    if seed < 0:
        raise SettingError(f"encoder seed must not be negative, got {seed}")
    encoder = architecture(name, weights, trainable)
    encoder.initialise(seed)
    return encoder.eval()
