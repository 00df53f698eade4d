"""The weights of a vehicle's own loss, and the loss maps that they are made from, against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from cloud_server.algorithms.kept_loss_maps import KeptLossMaps
from cloud_server.desk.turns import Features
from cloud_server.errors import CloudError, RequestError
from cloud_server.networks.build import build_network
from cloud_server.training import losses
from cloud_server.training.trainer import DivergedError, Trainer, TrainerConfig
from datasets.labels import VOID
from edge_client.local.loss_weights import cell_weights, known_shares, spread
from protocol.codec.tensor import decode

CELLS = (3, 4)


def pixels(void_share: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits (3, 5, 12, 16) and labels (3, 12, 16); one cell of the first frame is all void."""
    random = np.random.default_rng(1)
    logits = (3 * random.standard_normal((3, 5, 12, 16))).astype(np.float32)
    label = random.integers(0, 5, (3, 12, 16)).astype(np.uint8)
    label[random.random(label.shape) < void_share] = VOID
    if void_share:
        label[0, :4, :4] = VOID
    return logits, label


def reference_weights(logits: np.ndarray, label: np.ndarray, power: float, cap: float) -> np.ndarray:
    """The same pixel by pixel: w (n, h, w) from the cross-entropy itself, without any map."""
    target = torch.from_numpy(label).long()
    loss_nhw = functional.cross_entropy(
        torch.from_numpy(logits), target, ignore_index=VOID, reduction="none"
    ).numpy()
    known_nhw = label != VOID
    cell_loss = np.zeros(loss_nhw.shape)
    for n in range(len(label)):
        for top in range(0, 12, 4):
            for left in range(0, 16, 4):
                cell = n, slice(top, top + 4), slice(left, left + 4)
                if known_nhw[cell].any():
                    cell_loss[cell] = loss_nhw[cell][known_nhw[cell]].mean()
    weight = np.minimum(cell_loss / loss_nhw[known_nhw].mean(), cap) ** power
    return weight / weight[known_nhw].mean()


@pytest.mark.parametrize(("power", "cap"), [(0.5, 5.0), (1.0, 1.2)])
@pytest.mark.parametrize("void_share", [0.0, 0.4])
def test_weights_from_loss_maps_equal_those_from_the_pixels(
    void_share: float, power: float, cap: float
) -> None:
    """Although a map counts a cell's void and its frame's: both are undone."""
    logits, label = pixels(void_share)
    map_nyx = losses.loss_map(torch.from_numpy(logits), torch.from_numpy(label), CELLS).numpy()
    known_nyx = np.stack([known_shares(label_hw, CELLS) for label_hw in label])
    weight_nyx = cell_weights(map_nyx, known_nyx, power=power, cap=cap)
    assert weight_nyx.dtype == np.float32
    expected = reference_weights(logits, label, power, cap)
    np.testing.assert_allclose(spread(weight_nyx, (12, 16)), expected, rtol=1e-5)
    assert spread(weight_nyx, (12, 16))[label != VOID].mean() == pytest.approx(1)


def test_without_any_loss_all_weights_are_one() -> None:
    assert np.array_equal(
        cell_weights(np.zeros((2, 3, 4), np.float32), np.ones((2, 3, 4), np.float32), power=0.5, cap=5),
        np.ones((2, 3, 4), np.float32),
    )


def test_without_any_known_pixel_all_weights_are_one() -> None:
    nothing = np.zeros((2, 3, 4), np.float32)
    assert np.array_equal(cell_weights(nothing, nothing, power=0.5, cap=5), np.ones((2, 3, 4), np.float32))


def test_cells_that_are_no_whole_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="3x5 cells doesn't fit logits of 12x16 pixels"):
        known_shares(np.zeros((12, 16), np.uint8), (3, 5))


# What the cloud keeps ---------------------------------------------------------------------------------


def uploaded() -> tuple[Features, np.ndarray, Trainer]:
    random = np.random.default_rng(2)
    train = Features(
        indices=(0, 1, 2, 3, 4), features_BCHW=random.normal(size=(5, 4, 6, 8)).astype(np.float32)
    )
    label_nHW = random.integers(0, 5, (5, 48, 64)).astype(np.uint8)
    network = build_network("compact", feature_shape=(4, 6, 8), feature_stride=8, num_classes=5, seed=0)
    return train, label_nHW, Trainer(network, TrainerConfig())


@pytest.mark.parametrize("map_stride", [1, 2])
def test_kept_maps_are_those_of_the_trainer_batch_by_batch(map_stride: int) -> None:
    train, label_nHW, trainer = uploaded()
    before = trainer.weights()
    kept = KeptLossMaps(batch_size=2, map_stride=map_stride)
    kept.keep("car", train, label_nHW, trainer)
    assert all(torch.equal(before[name], value) for name, value in trainer.weights().items())
    again = KeptLossMaps(batch_size=2, map_stride=map_stride)
    again.restore({"/network/weight": torch.zeros(1), **kept.tensors()})
    for indices in ((0, 1), (2, 3), (4,)):
        chosen = list(indices)
        size = (6 // map_stride, 8 // map_stride)
        expected = trainer.loss_map(train.features_BCHW[chosen], label_nHW[chosen], size)
        coded = kept.find("car", indices)
        step = np.ptp(expected) / 255
        np.testing.assert_allclose(
            decode(coded, expected_shape=(len(indices), 1, *size))[:, 0], expected, atol=0.51 * step, rtol=0
        )
        assert again.find("car", indices) == coded


@pytest.mark.parametrize("indices", [(0,), (1, 2), (0, 1, 2, 3, 4), (7,)])
def test_frames_that_are_no_batch_have_no_kept_maps(indices: tuple[int, ...]) -> None:
    train, label_nHW, trainer = uploaded()
    kept = KeptLossMaps(batch_size=2, map_stride=1)
    kept.keep("car", train, label_nHW, trainer)
    with pytest.raises(RequestError, match=f"no loss maps are kept of {len(indices)} frames"):
        kept.find("car", indices)
    with pytest.raises(RequestError, match="no loss maps are kept"):
        kept.find("other", (0, 1))
    kept.clear()
    with pytest.raises(RequestError, match="no loss maps are kept"):
        kept.find("car", (0, 1))


def test_stride_that_does_not_divide_the_features_is_named() -> None:
    train, label_nHW, trainer = uploaded()
    with pytest.raises(CloudError, match=r"weight_map_stride must divide the feature map of 6x8, got 4"):
        KeptLossMaps(batch_size=2, map_stride=4).keep("car", train, label_nHW, trainer)


def test_loss_that_is_not_finite_counts_as_diverged() -> None:
    train, label_nHW, trainer = uploaded()
    trainer.load_weights(
        {name: (value * torch.nan).to(value.dtype) for name, value in trainer.weights().items()}
    )
    with pytest.raises(DivergedError, match="loss maps of vehicle 'car'"):
        KeptLossMaps(batch_size=2, map_stride=1).keep("car", train, label_nHW, trainer)


# BatchNorm statistics of some features ----------------------------------------------------------------


def test_estimated_statistics_are_those_of_the_features() -> None:
    """Of the first layer: with one batch the very moments, with several their mean."""
    train, _, trainer = uploaded()
    before = trainer.weights()
    whole = trainer.estimate_statistics(train.features_BCHW, batch_size=5, seed=0)
    features = torch.from_numpy(train.features_BCHW)
    torch.testing.assert_close(whole["normalise.running_mean"], features.mean((0, 2, 3)))
    torch.testing.assert_close(whole["normalise.running_var"], features.var((0, 2, 3)))
    assert all(torch.equal(before[name], value) for name, value in trainer.weights().items())
    batches = trainer.estimate_statistics(train.features_BCHW, batch_size=2, seed=0)
    weights = {name: value.shape for name, value in before.items() if "running" in name}
    assert {name: value.shape for name, value in batches.items()} == weights
    again = trainer.estimate_statistics(train.features_BCHW, batch_size=2, seed=0)
    assert all(torch.equal(batches[name], again[name]) for name in batches)


def test_network_with_its_batch_s_statistics_predicts_as_in_training() -> None:
    """Every layer got its statistics behind layers that normalised by the batch, so that it comes out alike.

    Not quite: BatchNorm trains with the biased variance of a batch and keeps the unbiased one.
    """
    train, _, trainer = uploaded()
    statistics = trainer.estimate_statistics(train.features_BCHW, batch_size=5, seed=0)
    network = build_network("compact", feature_shape=(4, 6, 8), feature_stride=8, num_classes=5, seed=0)
    features = torch.from_numpy(train.features_BCHW)
    with torch.no_grad():
        expected = network.train()(features)
        network.load_state_dict({**network.state_dict(), **statistics})
        found = network.eval()(features)
    assert torch.corrcoef(torch.stack([found.ravel(), expected.ravel()]))[0, 1] > 0.99


def test_statistics_of_parts_that_the_features_do_not_reach_stay_out() -> None:
    """As an input stem for other vehicles' features."""

    class Branched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.BatchNorm2d(4)
            self.stem = nn.BatchNorm2d(3)

        def forward(self, features_BCHW: torch.Tensor) -> torch.Tensor:
            normalised: torch.Tensor = self.body(features_BCHW)
            return normalised

    trainer = Trainer(Branched(), TrainerConfig())
    found = trainer.estimate_statistics(np.ones((3, 4, 6, 8), np.float32), batch_size=2, seed=0)
    assert set(found) == {"body.running_mean", "body.running_var"}
