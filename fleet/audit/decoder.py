"""A decoder from features to frames, trained on frames that the attacker has, through the same encoder.

Shapes: B frames, C feature channels, h w feature rows and columns, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from protocol.noise import derive_seed, permutation

Pixels = NDArray[np.uint8]
Features = NDArray[np.float32]

_WIDTH = 64
_LEAST_WIDTH = 16
_BLOCKS = 2
_BATCH = 8
_RATE = 2e-3


class Block(nn.Module):
    """Two convolutions beside a way past them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(functional.gelu(self.first(functional.gelu(x))))
        return x + y


class Decoder(nn.Module):
    """features_BChw → image_BHWC in 0 to 1: residual blocks, then pixel shuffles up to the frame's size.

    About 0.3 M parameters; most of the work is done on the features' grid, so that a step takes a tenth of a
    second on one core for frames of 128x96 pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features_BChw: Features, image_size_HW: tuple[int, int]) -> None:
        """`features_BChw` are some that it will be trained on: their channels are normalised."""
        super().__init__()
        channels, rows = features_BChw.shape[1], features_BChw.shape[2]
        self._size_HW = image_size_HW
        width = _WIDTH
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1)]
        layers += [Block(width) for _ in range(_BLOCKS)]
        while 2 * rows <= image_size_HW[0]:
            rows *= 2
            narrower = max(_LEAST_WIDTH, width // 2) if 2 * rows <= image_size_HW[0] else 3
            layers += [nn.GELU(), nn.Conv2d(width, 4 * narrower, 3, padding=1), nn.PixelShuffle(2)]
            width = narrower
        if width != 3:
            layers += [nn.GELU(), nn.Conv2d(width, 3, 3, padding=1)]
        self.layers = nn.Sequential(*layers)
        mean_C, std_C = features_BChw.mean(axis=(0, 2, 3)), features_BChw.std(axis=(0, 2, 3))
        self.register_buffer("mean", torch.from_numpy(mean_C)[:, None, None])
        self.register_buffer("std", torch.from_numpy(np.maximum(std_C, 1e-6))[:, None, None])

    def forward(self, features_BChw: Tensor) -> Tensor:
        image_BCHW = self.layers((features_BChw - self.mean) / self.std)
        if image_BCHW.shape[-2:] != self._size_HW:
            image_BCHW = functional.interpolate(image_BCHW, self._size_HW, mode="bilinear")
        image_BHWC: Tensor = 0.5 + image_BCHW.permute(0, 2, 3, 1)
        return image_BHWC

    @torch.inference_mode()
    def decode(self, features_BChw: Features) -> Pixels:
        """The frames uint8 RGB that it makes of features."""
        image_BHWC = self(torch.from_numpy(features_BChw)).clamp(0, 1)
        return np.asarray((255 * image_BHWC).round().to(torch.uint8).numpy())


def train_decoder(
    image_BHWC: Pixels,
    features_BChw: Features,
    *,
    steps: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Decoder:
    """Train a decoder by the squared error of pixels, Adam, one cycle of its rate.

    Args:
        image_BHWC, features_BChw: frames that the attacker has, uint8 RGB, and what crosses of each.
        steps: batches of 8.
        progress: told how many of the steps are done.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        decoder = Decoder(features_BChw, (image_BHWC.shape[1], image_BHWC.shape[2]))
    image = torch.from_numpy(image_BHWC).float() / 255
    features = torch.from_numpy(features_BChw)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=max(2, steps), pct_start=0.1)
    frames, order, epoch = len(image), np.zeros(0, np.int64), 0
    for step in range(steps):
        while len(order) < min(_BATCH, frames):
            order = np.concatenate([order, permutation(derive_seed(seed, epoch), frames)])
            epoch += 1
        chosen, order = torch.from_numpy(order[:_BATCH]), order[_BATCH:]
        loss = functional.mse_loss(decoder(features[chosen]), image[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        progress(step + 1, steps)
    return decoder.eval()
