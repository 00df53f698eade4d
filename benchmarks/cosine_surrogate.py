"""The estimator `surrogate` at one moment of a training run: its head, fitted to answers about other batches.

Legend: B frames of a batch, C channels, H W rows and columns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.joint_training import FEATURE_BITS, Features, JointTraining, quantised
from cloud_server.desk.seeded_queries import coded_loss_maps
from edge_client.estimators.activation import estimator_of
from edge_client.learners.surrogate_head import Answered, Surrogate
from edge_client.local.cross_entropy import downsample_label
from edge_client.local.head import LocalHead
from fleet.export.head_export import head_for, write_head
from fleet.scenario import LocalHeadPart
from protocol.codec.tensor import EncodedTensor, decode, encode
from protocol.messages import LossMaps, SeededQuery
from protocol.noise import derive_seed, permutation
from protocol.perturbation import pack_scale
from protocol.plans.surrogate import SurrogatePlan

_SETTLED_FRAMES = 64


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What crosses for one estimate, and what the vehicle knows after it."""

    query: SeededQuery
    maps: LossMaps
    answered: Answered


class FittedSurrogate:
    """A head that begins as the run's local head, its normalisation fixed, and is fitted as on a vehicle.

    Args:
        training: nothing of it learns meanwhile.
        plan: how it is fitted.
        measured: train frames that it is not told of.
        header: what messages begin with.
    """

    def __init__(
        self,
        training: JointTraining,
        plan: SurrogatePlan,
        measured: Sequence[int],
        header: dict[str, Any],
    ) -> None:
        self._training = training
        self._plan = plan
        self._header = header
        self._activation = estimator_of(plan)
        self._head = _begun(training)
        self.surrogate = Surrogate(self._head, plan, self._activation)
        train = training.frames.splits["train"]
        others = [index for index in train if index not in set(measured)]
        size = min(training.study.batch_size, len(train))
        others = others if len(others) >= size else list(train)
        for number in range(training.study.answers):
            seed = derive_seed(training.study.seed, "fitted", training.trainer.steps, number)
            batch = [others[position] for position in permutation(seed, len(others))[:size]]
            image_BHWC, label_BHW = training.batch(batch)
            features_BCHW = training.encoder.forward(training.theta, image_BHWC)
            self.surrogate.fit(self.ask(features_BCHW, label_BHW, tuple(batch), seed).answered, seed)

    def ask(
        self, features_BCHW: Features, label_BHW: np.ndarray, batch: tuple[int, ...], seed: int
    ) -> Exchange:
        """A seeded query about a batch, and its answer."""
        proposed = self._activation.propose(features_BCHW, seed)
        arrived_BCHW = quantised(features_BCHW)
        query = SeededQuery(
            **self._header,
            frames=batch,
            features=encode(features_BCHW, FEATURE_BITS),
            seeds=proposed.seeds,
            scale=pack_scale(proposed.scale_C),
            two_sided=self._plan.two_sided,
            map_size=self._activation.map_size(features_BCHW.shape),
            block=proposed.block,
        )
        coded: EncodedTensor = coded_loss_maps(
            query,
            arrived_BCHW,
            proposed.scale_C,
            lambda copies: self._training.trainer.loss_maps(copies, label_BHW, query.map_size),
            self._plan.map_bits,
        )
        _, height, width = self._head.spec.logit_shape
        answered = Answered(
            features_BCHW=arrived_BCHW,
            label_Bhw=np.stack([downsample_label(label_HW, (height, width)) for label_HW in label_BHW]),
            perturbations=proposed,
            maps_BMyx=decode(coded, expected_shape=(len(batch), 1 + self._plan.seeds, *query.map_size)),
        )
        return Exchange(query=query, maps=LossMaps(**self._header, maps=coded), answered=answered)


def _begun(training: JointTraining) -> LocalHead:
    """The run's local head, settled on train features as they are now."""
    spec, part = training.encoder.spec, LocalHeadPart()
    head = head_for(spec, training.label_space, width=part.width, depth=part.depth, seed=0, fixed=True)
    torch.nn.utils.vector_to_parameters(torch.tensor(training.head_parameters), head.parameters())
    train = training.frames.splits["train"][:_SETTLED_FRAMES]
    features_nCHW = training.encoder.forward(training.theta, training.batch(train)[0])
    head.settle(torch.from_numpy(quantised(features_nCHW)))
    with tempfile.TemporaryDirectory() as folder:
        return LocalHead(write_head(head, spec, Path(folder), training.label_space.name))
