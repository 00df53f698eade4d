"""The losses against torch's own, against the formula written out, and on void pixels."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from cloud_server.training.losses import (
    LOSSES,
    cross_entropy,
    dice,
    downsample_labels,
    entropy,
    entropy_map,
    find_loss,
    loss_map,
    per_frame,
)


def example(*, void: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    logits_BKhw = 2 * torch.randn(3, 5, 6, 8, generator=generator)
    label_Bhw = torch.randint(0, 5, (3, 6, 8), generator=generator, dtype=torch.uint8)
    if void:
        label_Bhw[torch.rand(3, 6, 8, generator=generator) < 0.3] = 255
    return logits_BKhw, label_Bhw


def test_cross_entropy_equals_torch_where_some_pixels_are_void() -> None:
    logits_BKhw, label_Bhw = example()
    expected = functional.cross_entropy(logits_BKhw, label_Bhw.long(), ignore_index=255)
    torch.testing.assert_close(cross_entropy(logits_BKhw, label_Bhw), expected)


def test_dice_equals_the_one_hot_formula_without_the_void_pixels() -> None:
    logits_BKhw, label_Bhw = example()
    known_Bhw = label_Bhw != 255
    p_NK = logits_BKhw.double().softmax(1).permute(0, 2, 3, 1)[known_Bhw]
    t_NK = functional.one_hot(label_Bhw[known_Bhw].long(), 5).double()
    expected = 1 - (2 * (p_NK * t_NK).sum() + 1) / ((p_NK + t_NK).sum() + 1)
    assert dice(logits_BKhw, label_Bhw).item() == pytest.approx(expected.item(), abs=1e-6)


def test_combined_loss_is_the_sum() -> None:
    batch = example()
    total = LOSSES["cross-entropy"](*batch) + LOSSES["dice"](*batch)
    torch.testing.assert_close(LOSSES["cross-entropy+dice"](*batch), total)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_small_when_all_is_right_and_invariant_to_what_stands_at_void_pixels(name: str) -> None:
    logits_BKhw, label_Bhw = example()
    one_hot = functional.one_hot(label_Bhw.long() % 255, 5).permute(0, 3, 1, 2)
    assert LOSSES[name](40.0 * one_hot, label_Bhw).item() < 1e-3
    changed_BKhw = torch.where((label_Bhw == 255)[:, None], -logits_BKhw, logits_BKhw)
    assert LOSSES[name](changed_BKhw, label_Bhw) == LOSSES[name](logits_BKhw, label_Bhw)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_of_an_all_void_batch_is_zero_with_zero_gradient(name: str) -> None:
    logits_BKhw = torch.randn(2, 5, 4, 4, requires_grad=True)
    loss = LOSSES[name](logits_BKhw, torch.full((2, 4, 4), 255, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0.0
    assert logits_BKhw.grad is not None and torch.count_nonzero(logits_BKhw.grad) == 0


@pytest.mark.parametrize("name", LOSSES)
def test_per_frame_losses_are_those_of_batches_of_one(name: str) -> None:
    logits_BKhw, label_Bhw = example()
    label_Bhw[1] = 255
    losses_B = per_frame(LOSSES[name], logits_BKhw, label_Bhw)
    assert losses_B.shape == (3,)
    assert losses_B[1] == 0
    assert losses_B[2] == LOSSES[name](logits_BKhw[2:], label_Bhw[2:])


def test_find_loss_with_an_unknown_name_lists_the_known_ones() -> None:
    assert find_loss("dice") is dice
    with pytest.raises(ValueError, match=r"unknown loss 'focal', expected one of: cross-entropy, dice"):
        find_loss("focal")


@pytest.mark.parametrize("cells_yx", [(3, 4), (6, 8), (1, 1), (12, 16), (3, 8)])
def test_loss_map_averages_to_the_loss_of_each_frame(cells_yx: tuple[int, int]) -> None:
    logits_BKhw, label_Bhw = example()
    label_Bhw[1] = 255
    map_Byx = loss_map(logits_BKhw, label_Bhw, cells_yx)
    assert map_Byx.shape == (3, *cells_yx)
    torch.testing.assert_close(map_Byx.mean((1, 2)), per_frame(cross_entropy, logits_BKhw, label_Bhw))


def test_loss_map_changes_only_where_the_logits_change() -> None:
    logits_BKhw, label_Bhw = example(void=False)
    changed_BKhw = logits_BKhw.clone()
    changed_BKhw[0, :, 2:4, 6:8] += torch.arange(5.0).view(5, 1, 1)
    difference = loss_map(changed_BKhw, label_Bhw, (3, 4)) != loss_map(logits_BKhw, label_Bhw, (3, 4))
    assert difference.nonzero().tolist() == [[0, 1, 3]]


def test_loss_map_with_a_grid_that_does_not_fit_is_an_error() -> None:
    logits_BKhw, label_Bhw = example()
    with pytest.raises(ValueError, match="loss map of 4 cells doesn't fit logits of 6"):
        loss_map(logits_BKhw, label_Bhw, (4, 4))


def test_entropy_equals_that_of_torchs_distributions() -> None:
    logits_BKhw, _ = example()
    expected_Bhw = torch.distributions.Categorical(logits=logits_BKhw.movedim(1, -1)).entropy()
    torch.testing.assert_close(entropy(logits_BKhw), expected_Bhw.mean())
    torch.testing.assert_close(entropy_map(logits_BKhw, (6, 8)), expected_Bhw)


def test_entropy_is_the_log_of_the_classes_where_nothing_is_known_and_zero_where_all_is() -> None:
    assert entropy(torch.zeros(1, 11, 4, 4)).item() == pytest.approx(math.log(11))
    certain_BKhw = torch.zeros(1, 11, 4, 4, requires_grad=True)
    loss = entropy(certain_BKhw + 1e4 * functional.one_hot(torch.tensor(3), 11).view(1, 11, 1, 1))
    loss.backward()
    assert loss.item() == 0.0
    assert certain_BKhw.grad is not None and certain_BKhw.grad.isfinite().all()


@pytest.mark.parametrize("cells_yx", [(3, 4), (6, 8), (1, 1), (12, 16), (3, 8)])
def test_entropy_map_averages_to_the_entropy_of_each_frame(cells_yx: tuple[int, int]) -> None:
    logits_BKhw, _ = example()
    map_Byx = entropy_map(logits_BKhw, cells_yx)
    assert map_Byx.shape == (3, *cells_yx)
    expected_B = torch.stack([entropy(logits_BKhw[frame : frame + 1]) for frame in range(3)])
    torch.testing.assert_close(map_Byx.mean((1, 2)), expected_B)


def test_entropy_map_with_a_grid_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="loss map of 4 cells doesn't fit logits of 6"):
        entropy_map(example()[0], (4, 4))


def test_downsampling_takes_the_pixel_at_each_cell_centre() -> None:
    label_BHW = torch.arange(2 * 8 * 12, dtype=torch.int64).reshape(2, 8, 12) % 256
    label_BHW = label_BHW.to(torch.uint8)
    assert torch.equal(downsample_labels(label_BHW, (2, 3)), label_BHW[:, 2::4, 2::4])
    assert torch.equal(downsample_labels(label_BHW, (8, 12)), label_BHW)


@pytest.mark.parametrize(
    ("size_HW", "size_hw"), [((9, 7), (4, 3)), ((5, 5), (10, 15)), ((360, 480), (48, 64))]
)
def test_downsampling_odd_sizes_equals_nearest_exact(
    size_HW: tuple[int, int], size_hw: tuple[int, int]
) -> None:
    label_BHW = torch.randint(0, 256, (2, *size_HW), dtype=torch.uint8)
    expected = functional.interpolate(label_BHW[:, None].double(), size_hw, mode="nearest-exact")
    assert torch.equal(downsample_labels(label_BHW, size_hw), expected[:, 0].to(torch.uint8))


def test_cross_entropy_of_uniform_logits_is_the_log_of_the_number_of_classes() -> None:
    label_Bhw = torch.randint(0, 11, (1, 4, 4))
    assert cross_entropy(torch.zeros(1, 11, 4, 4), label_Bhw).item() == pytest.approx(math.log(11))
