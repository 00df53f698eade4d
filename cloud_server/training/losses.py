"""Segmentation losses that leave void pixels out, and the one table they are chosen from.

Legend: B frames, K classes, h w rows and columns of logits, H W of a label, y x of a grid of cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from datasets.labels import VOID
from protocol.errors import SettingError


class Loss(Protocol):
    """What is trained by."""

    def __call__(self, logits_BKhw: Tensor, label_Bhw: Tensor, weight_K: Tensor | None = None, /) -> Tensor:
        """A float32 scalar, 0 where all is void; logits float32, labels of an integer type with 255 for void,
        and what a pixel counts by its class, float32, None = all alike."""


_DICE_SMOOTHING = 1.0


def cross_entropy(logits_BKhw: Tensor, label_Bhw: Tensor, weight_K: Tensor | None = None) -> Tensor:
    """Return the mean of −w log p(label) over the batch's pixels that are not void, a scalar.

    w is the weight of a pixel's class, else 1; the mean is over pixels, not over weights.
    """
    # On a GPU its own sum adds in whatever order threads arrive.
    reduction = "none" if logits_BKhw.is_cuda else "sum"
    total = functional.cross_entropy(
        logits_BKhw, label_Bhw.long(), ignore_index=VOID, reduction=reduction, weight=weight_K
    ).sum()
    return total / (label_Bhw != VOID).sum().clamp(min=1)


def dice(logits_BKhw: Tensor, label_Bhw: Tensor, weight_K: Tensor | None = None) -> Tensor:
    """Return BlackFed's soft dice loss `1 − (2 Σ p·t + 1) / (Σ p + Σ t + 1)`, a scalar.

    p are the softmax probabilities, t the one-hot label; the sums run over classes and the batch's pixels
    that are not void, all classes in one sum (as in the reference implementation's `dice_loss`,
    github.com/JayParanjape/blackfed). Over one-hot labels that makes it about 1 − mean p(label): bounded,
    so that a few hopeless pixels can't dominate a finite difference, but blind to how rare a class is, unless
    each pixel's part of the sums is weighted by its class.
    """
    known_Bhw = label_Bhw != VOID
    index_B1hw = label_Bhw.long().masked_fill(~known_Bhw, 0).unsqueeze(1)
    true_probability_Bhw = logits_BKhw.softmax(dim=1).gather(1, index_B1hw).squeeze(1)
    share_Bhw = known_Bhw if weight_K is None else known_Bhw * weight_K[index_B1hw.squeeze(1)]
    overlap = (true_probability_Bhw * share_Bhw).sum()
    # Probabilities and one-hot labels both sum to one at every pixel: Σ p + Σ t is twice the pixel count.
    mass = 2.0 * share_Bhw.sum()
    return 1.0 - (2.0 * overlap + _DICE_SMOOTHING) / (mass + _DICE_SMOOTHING)


def cross_entropy_and_dice(logits_BKhw: Tensor, label_Bhw: Tensor, weight_K: Tensor | None = None) -> Tensor:
    """Return the plain sum of `cross_entropy` and `dice`, a scalar."""
    return cross_entropy(logits_BKhw, label_Bhw, weight_K) + dice(logits_BKhw, label_Bhw, weight_K)


LOSSES: dict[str, Loss] = {
    "cross-entropy": cross_entropy,
    "dice": dice,
    "cross-entropy+dice": cross_entropy_and_dice,
}
"""Every loss that a scenario can name."""


def find_loss(name: str) -> Loss:
    """Return `LOSSES[name]`.

    Raises:
        SettingError: there is no such loss; the message lists those there are.
    """
    try:
        return LOSSES[name]
    except KeyError:
        raise SettingError(f"unknown loss {name!r}, expected one of: {', '.join(LOSSES)}") from None


def per_frame(loss: Callable[[Tensor, Tensor], Tensor], logits_BKhw: Tensor, label_Bhw: Tensor) -> Tensor:
    """Return `loss` of every frame by itself, float32[B]; a frame that is all void has loss 0."""
    return torch.stack([loss(logits_BKhw[i : i + 1], label_Bhw[i : i + 1]) for i in range(len(logits_BKhw))])


def loss_map(
    logits_BKhw: Tensor, label_Bhw: Tensor, cells_yx: tuple[int, int], weight_K: Tensor | None = None
) -> Tensor:
    """Return what each cell of a `cells_yx` grid adds to its frame's cross-entropy, float32[B, y, x].

    The grid covers the frame evenly; y, x must divide h, w or be multiples of them (several cells then
    share a pixel's loss). Void pixels add nothing, and the map is scaled so that its mean over the cells of
    a frame is the cross-entropy of that frame.

    Raises:
        SettingError: the grid doesn't fit the logits.
    """
    cross_entropy_Bhw = functional.cross_entropy(
        logits_BKhw, label_Bhw.long(), ignore_index=VOID, reduction="none", weight=weight_K
    )
    known_B = (label_Bhw != VOID).sum(dim=(1, 2)).clamp(min=1)
    pixels = label_Bhw.shape[-2] * label_Bhw.shape[-1]
    share_Bhw = cross_entropy_Bhw * (pixels / known_B)[:, None, None]
    map_Byw = _resample(share_Bhw, 1, cells_yx[0])
    return _resample(map_Byw, 2, cells_yx[1])


def entropy(logits_BKhw: Tensor) -> Tensor:
    """Return the mean over all pixels of the entropy −Σ p log p of the predicted classes, in nats, a scalar.

    What is left to learn from without labels: Wang et al., Tent, ICLR 2021 (arXiv 2006.10726), equation 1.
    """
    return _pixel_entropy(logits_BKhw).mean()


def entropy_map(logits_BKhw: Tensor, cells_yx: tuple[int, int]) -> Tensor:
    """Return the mean `entropy` of the pixels of each cell of a `cells_yx` grid, float32[B, y, x].

    The grid is that of `loss_map`; the mean over the cells of a frame is the entropy of that frame.

    Raises:
        SettingError: the grid doesn't fit the logits.
    """
    return _resample(_resample(_pixel_entropy(logits_BKhw), 1, cells_yx[0]), 2, cells_yx[1])


def _pixel_entropy(logits_BKhw: Tensor) -> Tensor:
    log_p_BKhw = logits_BKhw.log_softmax(dim=1)
    return -(log_p_BKhw.exp() * log_p_BKhw).sum(dim=1)


def _resample(values: Tensor, dim: int, cells: int) -> Tensor:
    """Average neighbours along `dim`, or repeat each value, so that there are `cells` of them."""
    length = values.shape[dim]
    if cells > 0 and length % cells == 0:
        shape = (*values.shape[:dim], cells, length // cells, *values.shape[dim + 1 :])
        return values.reshape(shape).mean(dim + 1)
    if cells > 0 and cells % length == 0:
        return values.repeat_interleave(cells // length, dim)
    raise SettingError(f"a loss map of {cells} cells doesn't fit logits of {length} pixels along one side")


def downsample_labels(label_BHW: Tensor, size_hw: Sequence[int]) -> Tensor:
    """Return the label at the pixel nearest to each cell's centre, [B, h, w] of the same type."""
    rows_h = _centres(label_BHW.shape[-2], size_hw[0], label_BHW.device)
    columns_w = _centres(label_BHW.shape[-1], size_hw[1], label_BHW.device)
    return label_BHW[..., rows_h[:, None], columns_w]


def _centres(length: int, cells: int, device: torch.device) -> Tensor:
    # In whole numbers, floor((i + ½) · length / cells): no rounding that could differ between machines.
    return (2 * torch.arange(cells, device=device) + 1) * length // (2 * cells)
