"""Frames from the step that one of them has caused: gradient inversion for segmentation.

After Geiping et al. (2020, "Inverting Gradients"; in the toolbox `breaching` as `invertinggradients`): the
picture whose gradient points where the observed one does, with a total-variation prior, signed Adam steps.
Legend: K classes, H W pixels, P parameter arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from cloud_server.training.losses import downsample_labels
from datasets.labels import VOID
from fleet.audit.inversion import total_variation

Pixels = NDArray[np.uint8]

_RATE = 0.1


def segmentation_loss(logits_BKhw: Tensor, label_BHW: Tensor) -> Tensor:
    """Cross-entropy at the logits' size, void left out, differentiable twice."""
    label_Bhw = downsample_labels(label_BHW, logits_BKhw.shape[-2:]).long()
    return functional.cross_entropy(logits_BKhw, label_Bhw, ignore_index=VOID)


def gradient_of(network: nn.Module, image_HWC: Pixels, label_HW: Pixels) -> list[Tensor]:
    """What one step of gradient descent on one frame reveals: the gradient of each parameter array."""
    image_BHWC = torch.from_numpy(image_HWC)[None].float()
    loss = segmentation_loss(network(image_BHWC), torch.from_numpy(label_HW)[None])
    return list(torch.autograd.grad(loss, list(network.parameters())))


def invert_gradient(
    network: nn.Module,
    gradient_P: Sequence[Tensor],
    label_HW: Pixels,
    start_HWC: Pixels,
    *,
    steps: int,
    smoothness: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Pixels:
    """The frame uint8 RGB whose gradient is nearest in direction.

    Args:
        network: image_BHWC, RGB 0 to 255, to logits_BKhw, with the weights before the step.
        label_HW: the frame's label, uint8: the worst case is that it is known.
        start_HWC: where the search begins.
        smoothness: weight of the total variation beside one minus the cosine.
    """
    label_BHW = torch.from_numpy(label_HW)[None]
    parameters = list(network.parameters())
    length = torch.stack([(g**2).sum() for g in gradient_P]).sum().sqrt()
    values = (torch.from_numpy(start_HWC)[None].float() / 127.5 - 1).requires_grad_(True)
    optimizer = torch.optim.Adam([values], lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps), eta_min=_RATE / 50)
    for step in range(steps):
        image_BHWC = 127.5 * (1 + values)
        loss = segmentation_loss(network(image_BHWC), label_BHW)
        own_P = torch.autograd.grad(loss, parameters, create_graph=True)
        dot = torch.stack([(a * b).sum() for a, b in zip(own_P, gradient_P, strict=True)]).sum()
        own_length = (torch.stack([(a**2).sum() for a in own_P]).sum() + 1e-20).sqrt()
        away = 1 - dot / (length * own_length + 1e-20)
        [slope] = torch.autograd.grad(away + smoothness * total_variation(image_BHWC) / 255, [values])
        values.grad = slope.sign()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            values.clamp_(-1, 1)
        progress(step + 1, steps)
    with torch.no_grad():
        return np.asarray((127.5 * (1 + values[0])).round().to(torch.uint8).numpy())
