"""Frames from features without any training: the picture whose features are nearest to those that crossed.

Shapes: B frames, C feature channels, h w feature rows and columns, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Pixels = NDArray[np.uint8]
Features = NDArray[np.float32]

_RATE = 0.1
_EDGE = 0.02
"""Of a picture's values, −1 to 1: how soon the initial one is away from black and white."""


def total_variation(image_BHWC: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels, a scalar."""
    down = (image_BHWC[:, 1:] - image_BHWC[:, :-1]).abs().mean()
    across = (image_BHWC[:, :, 1:] - image_BHWC[:, :, :-1]).abs().mean()
    return down + across


def invert(
    encoder: nn.Module,
    features_BChw: Features,
    start_HWC: Pixels,
    *,
    steps: int,
    smoothness: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Pixels:
    """Search the frames whose features are these (Mahendran and Vedaldi, 2015: a total-variation prior).

    Args:
        encoder: image_BHWC, RGB 0 to 255, to features_BChw; its gradient for the image is followed by Adam.
        start_HWC: where the search begins, uint8 RGB.
        smoothness: weight of the total variation beside the squared error in standard deviations.
    """
    wanted = torch.from_numpy(features_BChw)
    spread = wanted.std(dim=(0, 2, 3), keepdim=True).clamp(min=1e-6)
    start = (torch.from_numpy(start_HWC).float() / 127.5 - 1).clamp(_EDGE - 1, 1 - _EDGE)
    hidden = torch.atanh(start).expand(len(wanted), *start.shape).clone().requires_grad_(True)
    optimizer = torch.optim.Adam([hidden], lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps), eta_min=_RATE / 50)
    for step in range(steps):
        image_BHWC = 127.5 * (1 + hidden.tanh())
        error = (((encoder(image_BHWC) - wanted) / spread) ** 2).mean()
        loss = error + smoothness * total_variation(image_BHWC) / 255
        [hidden.grad] = torch.autograd.grad(loss, [hidden])
        optimizer.step()
        schedule.step()
        progress(step + 1, steps)
    with torch.no_grad():
        return np.asarray((127.5 * (1 + hidden.tanh())).round().to(torch.uint8).numpy())
