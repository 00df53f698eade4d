"""White-box training for benchmarks, without a fleet: encoder and network together, a local head beside them.

Legend: B frames of a batch, C channels, H W rows and columns; θ all encoder parameters, float32 (n,).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cloud_server.config import network_seed
from cloud_server.networks.build import build_network
from cloud_server.training.losses import downsample_labels, find_loss
from cloud_server.training.trainer import Trainer, TrainerConfig
from datasets.labels import LabelSpace
from edge_client.encoder.runtime import Encoder
from edge_client.frames import VehicleFrames
from edge_client.local.cross_entropy import cross_entropy, downsample_label
from edge_client.local.head import LocalHead
from edge_client.optimizers import Adam
from fleet.export.bundle import export_bundle
from fleet.export.head_export import export_head
from fleet.scenario import LocalHeadPart
from protocol.batches import batch_bounds
from protocol.codec.tensor import decode, encode
from protocol.noise import derive_seed, permutation
from protocol.plans.first_order import FirstOrder
from protocol.plans.local_loss import LocalLossPlan
from protocol.plans.white_box import WhiteBoxPlan
from protocol.rates import SCHEDULES

Vector = NDArray[np.float32]
Features = NDArray[np.float32]
FEATURE_BITS = 8
_SETTLING_BATCHES = 16


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is trained, and what is measured on the way."""

    encoder: str = "stride8-c8"
    image_size: tuple[int, int] = (256, 192)
    steps: int = 800
    batch_size: int = 8
    batches: int = 4
    """Train batches on which the estimators are measured, the same ones at every checkpoint."""
    seeds: tuple[int, ...] = (1, 4, 16, 64)
    """K of `activation` at the default scale."""
    swept_seeds: tuple[int, ...] = (1, 4, 16)
    """Those of them that the other scales are measured with too."""
    queries: tuple[int, ...] = (1, 2, 4, 16, 64)
    """q of `spsa-gc`."""
    moves: tuple[int, ...] = (1, 4)
    """K of `region-spsa`."""
    scales: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    box_widths: tuple[int, ...] = (1, 3, 5, 7, 9)
    map_strides: tuple[int, ...] = (1, 2, 4)
    """Those above 1 are measured with the default scale, one-sided."""
    answers: int = 32
    """About train batches that are not measured, which a surrogate is fitted to at a checkpoint."""
    surrogate_seeds: tuple[int, ...] = (1, 4)
    """K of `surrogate`."""
    seed: int = 0

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """Steps after which the run is frozen and measured."""
        return tuple(sorted({0, self.steps // 16, self.steps // 4, self.steps // 2, self.steps}))


class JointTraining:
    """Encoder and network trained together as by `split`, and a local head trained beside them.

    Args:
        study: what to train.
        frames: of which the train split is used.
        label_space: of the frames.
        folder: where bundle and head are written.
    """

    def __init__(self, study: Study, frames: VehicleFrames, label_space: LabelSpace, folder: Path) -> None:
        self.study = study
        self.frames = frames
        self.label_space = label_space
        first, self._local, white_box = FirstOrder(), LocalLossPlan(), WhiteBoxPlan()
        bundle = export_bundle(
            study.encoder,
            folder / "bundle",
            image_size=study.image_size,
            seed=derive_seed(study.seed, "encoder"),
        )
        self.encoder = Encoder(bundle, mode="rebuild")
        self.theta = bundle.theta0
        self.network = build_network(
            "compact",
            feature_shape=bundle.spec.feature_shape,
            feature_stride=study.image_size[0] // bundle.spec.feature_shape[2],
            num_classes=label_space.num_classes,
            seed=network_seed(study.seed),
        )
        self.trainer = Trainer(
            self.network,
            TrainerConfig(
                rate=first.rate,
                weight_decay=first.weight_decay,
                schedule=first.schedule,
                total_steps=study.steps,
                seed=study.seed,
            ),
        )
        part = LocalHeadPart()
        self.head = LocalHead(
            export_head(
                bundle.spec,
                folder / "head",
                label_space_name=label_space.name,
                width=part.width,
                depth=part.depth,
                seed=derive_seed(study.seed, "head"),
            )
        )
        self.head_parameters = self.head.initial
        self._rate = white_box.rate
        self._adam, self._head_adam = Adam(white_box.rate), Adam(self._local.head_rate)
        self._order = self._batches()

    def _batches(self) -> Iterator[list[int]]:
        """Batches of train frames, epoch after epoch, each in an order of its own."""
        train = self.frames.splits["train"]
        epoch = 0
        while True:
            order = permutation(derive_seed(self.study.seed, "batches", epoch), len(train))
            for start, stop in batch_bounds(len(train), self.study.batch_size):
                yield [train[position] for position in order[start:stop]]
            epoch += 1

    def advance(self, to_step: int) -> None:
        """Train until so many steps have been taken."""
        while self.trainer.steps < to_step:
            batch = next(self._order)
            image_BHWC, label_BHW = self.batch(batch)
            linearised = self.encoder.linearise(self.theta, image_BHWC)
            share = SCHEDULES[self._local.schedule](self.trainer.steps, self.study.steps)
            self._head_adam.rate = self._local.head_rate * share
            self._adam.rate = self._rate * self.trainer.rate_share
            _, gradient_BCHW = self.trainer.train_step_with_gradient(
                quantised(linearised.features_BCHW), label_BHW
            )
            self.theta = self._adam.step(self.theta, linearised.pull_back(gradient_BCHW))
            head_gradient, _ = self.head_gradients(linearised.features_BCHW, label_BHW)
            self.head_parameters = self._head_adam.step(self.head_parameters, head_gradient)

    def batch(self, indices: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """image_BHWC and label_BHW."""
        return self.frames.images(indices), np.stack([self.frames.label(index) for index in indices])

    def head_gradients(
        self, features_BCHW: Features, label_BHW: NDArray[np.uint8]
    ) -> tuple[Vector, Features]:
        """The local loss's gradients at the head's parameters and at the features."""
        _, height, width = self.head.spec.logit_shape
        label_Bhw = np.stack([downsample_label(label_HW, (height, width)) for label_HW in label_BHW])
        judged = self.head.linearise(self.head_parameters, features_BCHW)
        _, gradient_BKhw = cross_entropy(judged.logits_BKhw, label_Bhw)
        return judged.pull_back(gradient_BKhw)

    def settled_network(self) -> nn.Module:
        """The network with BatchNorm statistics of the features as they are now, in evaluation mode."""
        network = copy.deepcopy(self.network).train()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None  # the plain mean over all batches
        train = self.frames.splits["train"]
        order = permutation(derive_seed(self.study.seed, "settling"), len(train))
        with torch.no_grad():
            for start, stop in batch_bounds(len(train), self.study.batch_size)[:_SETTLING_BATCHES]:
                image_BHWC = self.frames.images([train[position] for position in order[start:stop]])
                network(torch.from_numpy(quantised(self.encoder.forward(self.theta, image_BHWC))))
        return network.eval()


def quantised(features_BCHW: Features) -> Features:
    """The features as they arrive."""
    return decode(encode(features_BCHW, FEATURE_BITS), expected_shape=features_BCHW.shape)


def features_gradient(network: nn.Module, features_BCHW: Features, label_BHW: NDArray[np.uint8]) -> Features:
    """∂L/∂features of the batch's cross-entropy by autograd, the network in the mode that it is in."""
    leaf_BCHW = torch.from_numpy(features_BCHW.copy()).requires_grad_()
    logits_BKhw = network(leaf_BCHW)
    label_Bhw = downsample_labels(torch.from_numpy(label_BHW), logits_BKhw.shape[-2:])
    loss = find_loss(FirstOrder().loss)(logits_BKhw, label_Bhw)
    [gradient_BCHW] = torch.autograd.grad(loss, leaf_BCHW)
    return np.ascontiguousarray(gradient_BCHW.numpy())
