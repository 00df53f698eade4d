"""What answers tell a vehicle of the cloud's network: a student that imitates it, trained on them.

An answer is a loss map, −log p(y) in each cell at features and labels y that are the vehicle's own. The
student is fitted to how likely each map says that y is (Tramèr et al., 2016, "Stealing Machine Learning
Models via Prediction APIs"; here from losses alone). Who has no answers has the labels.
Legend: N answers, B frames, C feature channels, h w feature rows and columns, K classes, y x rows and columns
of logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from cloud_server.training.losses import downsample_labels
from datasets.labels import VOID
from fleet.audit.decoder import Block
from fleet.audit.gradients import segmentation_loss
from fleet.audit.material import Features, Material, Progress
from fleet.audit.reconstruction import Effort, Outcome
from fleet.report.audited import Scores
from protocol.noise import derive_seed, permutation, signs

_FRAMES = 40
"""Most train frames of the vehicle that it asks about."""
_SPREAD = 0.5
"""How far features are moved where a frame has more than one answer, in standard deviations of a channel."""
_WIDTH = 48
_BATCH = 8
_RATE = 4e-3
_SURE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a vehicle asked, and what it was told."""

    features_NChw: Tensor
    label_Nyx: Tensor
    likely_Nhw: Tensor
    """How likely the cloud's network finds the labels of a cell, of all that are not void, in their geometric
    mean."""


class Student(nn.Module):
    """features_BChw → logits_BKyx: two residual blocks on the features' grid, its own architecture."""

    mean: Tensor
    std: Tensor

    def __init__(self, features_BChw: Features, classes: int, size_yx: tuple[int, int]) -> None:
        super().__init__()
        self._size_yx = size_yx
        self.layers = nn.Sequential(
            nn.Conv2d(features_BChw.shape[1], _WIDTH, 3, padding=1), Block(_WIDTH), Block(_WIDTH), nn.GELU()
        )
        self.head = nn.Conv2d(_WIDTH, classes, 1)
        mean_C, std_C = features_BChw.mean(axis=(0, 2, 3)), features_BChw.std(axis=(0, 2, 3))
        self.register_buffer("mean", torch.from_numpy(mean_C)[:, None, None])
        self.register_buffer("std", torch.from_numpy(np.maximum(std_C, 1e-6))[:, None, None])

    def forward(self, features_BChw: Tensor) -> Tensor:
        logits_BKhw: Tensor = self.head(self.layers((features_BChw - self.mean) / self.std))
        return functional.interpolate(logits_BKhw, self._size_yx, mode="bilinear")


def likely(logits_BKyx: Tensor, label_Byx: Tensor, cells_hw: tuple[int, int]) -> Tensor:
    """exp(−loss map), float32 [B, h, w]; 1 where a cell is void."""
    loss_Byx = functional.cross_entropy(logits_BKyx, label_Byx.long(), ignore_index=VOID, reduction="none")
    counts_Bhw = functional.adaptive_avg_pool2d((label_Byx != VOID).float()[:, None], cells_hw)[:, 0]
    sums_Bhw = functional.adaptive_avg_pool2d(loss_Byx[:, None], cells_hw)[:, 0]
    return torch.exp(-sums_Bhw / counts_Bhw.clamp(min=1e-6))


def ask(
    network: nn.Module,
    features_BChw: Features,
    label_BHW: NDArray[np.uint8],
    *,
    answers: int,
    seed: int,
    classes: int = 0,
) -> Answers:
    """As many loss maps about each frame, the first at its features as they are, the others at moved ones.

    With `classes` the vehicle lies: it says of each frame that all of it is the first class, then the next.
    """
    features = torch.from_numpy(features_BChw)
    spread_C11 = _SPREAD * features.std(dim=(0, 2, 3), keepdim=True)[0]
    cells_hw = (features.shape[2], features.shape[3])
    asked: list[tuple[Tensor, Tensor, Tensor]] = []
    with torch.inference_mode():
        size_yx = network(features[:1]).shape[-2:]
        true_Byx = downsample_labels(torch.from_numpy(label_BHW), size_yx)
        for number in range(answers):
            moved = features
            if number:
                noise = signs(derive_seed(seed, "moved", number), tuple(features.shape))
                moved = features + spread_C11 * torch.from_numpy(noise).float()
            logits_BKyx = torch.cat([network(piece) for piece in torch.split(moved, _BATCH)])
            said = [torch.full_like(true_Byx, k) for k in range(classes)] or [true_Byx]
            asked += [(moved, label_Byx, likely(logits_BKyx, label_Byx, cells_hw)) for label_Byx in said]
    parts = [torch.cat(part).clone() for part in zip(*asked, strict=True)]
    return Answers(features_NChw=parts[0], label_Nyx=parts[1], likely_Nhw=parts[2])


def _train(
    student: Student,
    features_BChw: Features,
    label_BHW: NDArray[np.uint8],
    answers: Answers | None,
    *,
    steps: int,
    seed: int,
    progress: Progress,
) -> Student:
    """By labels where there are no answers; else by these: is it y, or is it not (binary cross-entropy)?"""
    optimizer = torch.optim.Adam(student.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=max(2, steps), pct_start=0.1)
    known = len(features_BChw) if answers is None else len(answers.features_NChw)
    features, label = torch.from_numpy(features_BChw), torch.from_numpy(label_BHW)
    order, epoch = np.zeros(0, np.int64), 0
    for step in range(steps):
        while len(order) < min(_BATCH, known):
            order = np.concatenate([order, permutation(derive_seed(seed, epoch), known)])
            epoch += 1
        chosen, order = torch.from_numpy(order[:_BATCH]), order[_BATCH:]
        if answers is None:
            loss = segmentation_loss(student(features[chosen]), label[chosen])
        else:
            told_Bhw = answers.likely_Nhw[chosen]
            cells_hw = (told_Bhw.shape[1], told_Bhw.shape[2])
            own_Bhw = likely(student(answers.features_NChw[chosen]), answers.label_Nyx[chosen], cells_hw)
            loss = functional.binary_cross_entropy(own_Bhw.clamp(_SURE, 1 - _SURE), told_Bhw.clamp(0, 1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        progress(step + 1, steps)
    return student.eval()


def _classes_of(network: nn.Module, features_BChw: Features) -> NDArray[np.int64]:
    with torch.inference_mode():
        pieces = torch.split(torch.from_numpy(features_BChw), _BATCH)
        return np.asarray(torch.cat([network(piece).argmax(dim=1) for piece in pieces]).numpy())


def alike_maps(own_BHW: NDArray[np.int64], theirs_BHW: NDArray[np.int64]) -> Scores:
    """Share of cells of one class in both, and the mean IoU over classes that are in either."""
    there = np.union1d(own_BHW, theirs_BHW)
    ious = [
        np.sum((own_BHW == k) & (theirs_BHW == k)) / np.sum((own_BHW == k) | (theirs_BHW == k)) for k in there
    ]
    return Scores(agreement=float(np.mean(own_BHW == theirs_BHW)), miou=float(np.mean(ious)))


def _imitated(
    network: nn.Module, material: Material, effort: Effort, *, answers: int, every_class: bool
) -> Outcome:
    """Two students of one seed, one with the answers and one without, against the network on test frames."""
    train = material.split("train", _FRAMES)
    features = material.features(material.trained_encoder, train.image_BHWC, material.coding)
    unseen = material.features(material.trained_encoder, material.target.image_BHWC, material.coding)
    with torch.inference_mode():
        _, classes, *size = network(torch.from_numpy(features[:1])).shape
    asked = ask(
        network,
        features,
        train.label_BHW,
        answers=answers,
        seed=effort.seed,
        classes=classes if every_class else 0,
    )
    theirs = _classes_of(network, unseen)
    scores = []
    for number, told in enumerate((asked, None)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(effort.seed % 2**63)
            student = Student(features, classes, (size[0], size[1]))
        _train(
            student,
            features,
            train.label_BHW,
            told,
            steps=effort.steps,
            seed=effort.seed,
            progress=lambda step, steps, n=number: effort.progress(n * steps + step, 2 * steps),  # type: ignore[misc]
        )
        scores.append(alike_maps(_classes_of(student, unseen), theirs))
    maps_a_frame = len(asked.likely_Nhw) / len(features)
    return Outcome(
        scores=scores[0],
        nothing=scores[1],
        frames=len(unseen),
        bits_a_frame=8 * maps_a_frame * asked.likely_Nhw[0].numel(),
    )


def by_answers(material: Material, effort: Effort, *, answers: int, every_class: bool = False) -> Outcome:
    """The network that serves the vehicle in the end, had all these answers been its."""
    return _imitated(
        material.served.network.eval(), material, effort, answers=answers, every_class=every_class
    )


class _Easy(nn.Module):
    """A network of one layer, sure of what it says, which has nothing to do with any label."""

    def __init__(self, features_BChw: Features, classes: int, seed: int) -> None:
        super().__init__()
        features = torch.from_numpy(features_BChw)
        self._mean = features.mean(dim=(0, 2, 3), keepdim=True)
        self._std = features.std(dim=(0, 2, 3), keepdim=True).clamp(min=1e-6)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            self._weights = 3 * torch.randn(classes, features.shape[1], 1, 1)

    def forward(self, features_BChw: Tensor) -> Tensor:
        return functional.conv2d((features_BChw - self._mean) / self._std, self._weights)


def planted_extraction(material: Material, effort: Effort) -> Outcome:
    """The same of an easy network, with what it thinks of every class."""
    train = material.split("train", _FRAMES)
    features = material.features(material.trained_encoder, train.image_BHWC, material.coding)
    network = _Easy(features, int(train.label_BHW[train.label_BHW != VOID].max(initial=1)) + 1, effort.seed)
    return _imitated(network, material, effort, answers=1, every_class=True)
