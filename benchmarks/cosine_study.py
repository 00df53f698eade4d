"""The estimates of every estimator at one moment of a training run, held against the exact gradient.

The estimators, coders and answers are the product's own; only the network between the messages is left out.
Legend: B frames of a batch, C channels, H W rows and columns, M maps; θ all encoder parameters, float32 (n,).
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.cosine_surrogate import FittedSurrogate
from benchmarks.joint_training import (
    FEATURE_BITS,
    Features,
    JointTraining,
    Vector,
    features_gradient,
    quantised,
)
from cloud_server.desk.moved_queries import checked_moves, coded_moved_maps
from cloud_server.desk.seeded_queries import coded_loss_maps
from cloud_server.training.losses import downsample_labels, loss_map
from edge_client.encoder.runtime import Linearisation
from edge_client.encoder.subspaces import Everything, Part, Subspace
from edge_client.estimators.activation import Activation
from edge_client.estimators.spsa import Spsa
from edge_client.learners.region_spsa import estimator_of as region_spsa_of
from protocol.codec.tensor import decode, encode
from protocol.messages import Feedback, Gradient, LossMaps, MovedQuery, Query, SeededQuery, TrainStep
from protocol.noise import derive_seed, permutation
from protocol.perturbation import pack_scale
from protocol.plans.activation import ActivationPlan
from protocol.plans.region_spsa import RegionSpsaPlan
from protocol.plans.spsa import SpsaPlan
from protocol.plans.surrogate import SurrogatePlan

SPSA = SpsaPlan()
DEFAULTS = ActivationPlan()
_FEATURES = "features"
"""In the place of a subspace."""
_HEADER: dict[str, Any] = {"vehicle": "car-01", "grant": "0123456789abcdef", "turn_id": 1, "step": 100}


@dataclass(frozen=True, order=True, kw_only=True)
class Setting:
    """An estimator and what it estimates with; what it does not know stays at 0."""

    estimator: str
    count: int = 0
    """q, K, or moves."""
    scale: float = 0.0
    two_sided: bool = False
    box_width: int = 0
    map_stride: int = 0
    gradient_bits: int = 0
    correction: float = 0.0
    """λ of `surrogate`."""


DEFAULT_ACTIVATION = Setting(
    estimator="activation",
    count=DEFAULTS.seeds,
    scale=DEFAULTS.scale,
    two_sided=DEFAULTS.two_sided,
    box_width=DEFAULTS.box_width,
    map_stride=DEFAULTS.map_stride,
)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One estimate of one batch's gradient."""

    setting: Setting
    step: int
    batch: int
    subspace: str
    """`all` or `film`; `features` for the gradient at the features, of estimators that have one there."""
    cosine: float
    """To the exact gradient of the loss that the cloud answers with: its network in evaluation mode."""
    training_cosine: float
    """To the exact gradient of a training step, as in `split`: BatchNorm takes the batch's statistics."""
    uplink_bytes: float
    """Of the messages, for each frame of the batch."""
    downlink_bytes: float


def measure(training: JointTraining) -> Iterator[Measurement]:
    """Every estimate of every measured batch, with encoder, network and head as they are now."""
    study = training.study
    settled = training.settled_network()
    train = training.frames.splits["train"]
    order = permutation(derive_seed(study.seed, "measured"), len(train))
    size = min(study.batch_size, len(train))
    batches = [
        [train[position] for position in order[number * size :][:size]]
        for number in range(min(study.batches, len(train) // size))
    ]
    measured = [index for batch in batches for index in batch]
    plans = [SurrogatePlan(seeds=seeds) for seeds in study.surrogate_seeds]
    surrogates = [(plan, FittedSurrogate(training, plan, measured, _HEADER)) for plan in plans]
    for number, indices in enumerate(batches):
        moment = _Moment(training, settled, number, indices)
        yield from moment.measure()
        for plan, fitted in surrogates:
            yield from moment.surrogate(plan, fitted)


class _Moment:
    """One batch at one checkpoint: nothing learns here."""

    def __init__(self, training: JointTraining, settled: nn.Module, number: int, indices: list[int]) -> None:
        self._training = training
        self._settled = settled
        self._learning = copy.deepcopy(training.network).train()
        self._study = training.study
        self._number = number
        self._indices = tuple(indices)
        self._image_BHWC, self._label_BHW = training.batch(indices)
        self._linearised: Linearisation = training.encoder.linearise(training.theta, self._image_BHWC)
        self._coded = encode(self._linearised.features_BCHW, FEATURE_BITS)
        self._features_BCHW = quantised(self._linearised.features_BCHW)
        self._cells_yx = self._features_BCHW.shape[2], self._features_BCHW.shape[3]
        self._subspaces: dict[str, Subspace] = {
            "all": Everything(training.theta),
            "film": Part("film", training.encoder.spec, training.theta),
        }
        self._exact, self._of_training_step = (
            self._exact_gradients(network) for network in (training.network, self._learning)
        )
        """By subspace, and of the features."""
        self._seed = derive_seed(self._study.seed, "estimate", training.trainer.steps, number)

    def _exact_gradients(self, network: nn.Module) -> dict[str, Vector]:
        """In every subspace, at the features as they leave the encoder."""
        gradient_BCHW = features_gradient(network, self._linearised.features_BCHW, self._label_BHW)
        gradient = self._linearised.pull_back(gradient_BCHW)
        found = {name: subspace.pull_back(gradient) for name, subspace in self._subspaces.items()}
        return {**found, _FEATURES: gradient_BCHW.ravel()}

    def measure(self) -> Iterator[Measurement]:
        """Each estimator with each of its settings."""
        yield from self._white_box()
        yield from self._local_head()
        yield from self._spsa()
        yield from self._region_spsa()
        yield from self._activation()

    def _compare(
        self, setting: Setting, gradient: Vector, messages: Sequence[Sequence[object]], subspace: str
    ) -> Measurement:
        """`gradient` is an estimate in the subspace, `messages` what went up and what came down for it."""
        frames = len(self._indices)
        uplink_bytes, downlink_bytes = (
            sum(len(msgspec.msgpack.encode(message)) for message in way) / frames for way in messages
        )
        return Measurement(
            setting=setting,
            step=self._training.trainer.steps,
            batch=self._number,
            subspace=subspace,
            cosine=cosine(gradient, self._exact[subspace]),
            training_cosine=cosine(gradient, self._of_training_step[subspace]),
            uplink_bytes=uplink_bytes,
            downlink_bytes=downlink_bytes,
        )

    def _compare_all(
        self, setting: Setting, v_BCHW: Features, up: Sequence[object], down: Sequence[object]
    ) -> Iterator[Measurement]:
        """An estimate at the features, in every subspace."""
        gradient = self._linearised.pull_back(v_BCHW)
        for name, subspace in self._subspaces.items():
            yield self._compare(setting, subspace.pull_back(gradient), (up, down), name)
        yield self._compare(setting, v_BCHW.ravel(), (up, down), _FEATURES)

    def surrogate(self, plan: SurrogatePlan, fitted: FittedSurrogate) -> Iterator[Measurement]:
        """A head, fitted to answers about other batches, is fitted to this one's, and estimates."""
        exchange = fitted.ask(self._linearised.features_BCHW, self._label_BHW, self._indices, self._seed)
        fitted.surrogate.fit(exchange.answered, self._seed)
        setting = Setting(
            estimator="surrogate", count=plan.seeds, scale=plan.scale, correction=plan.correction
        )
        v_BCHW = fitted.surrogate.estimate(exchange.answered)
        yield from self._compare_all(setting, v_BCHW, [exchange.query], [exchange.maps])

    def _white_box(self) -> Iterator[Measurement]:
        """Gradients that the cloud returns."""
        up = [TrainStep(**_HEADER, frames=self._indices, features=self._coded)]
        for name, network, bits in (
            ("white-box", self._training.network, 32),
            ("white-box", self._training.network, 8),
            ("white-box, settled statistics", self._settled, 32),
            ("split", self._learning, 32),
        ):
            coded = encode(features_gradient(network, self._features_BCHW, self._label_BHW), bits)
            down = [Gradient(**_HEADER, loss=1.0, rate_share=1.0, gradient=coded)]
            gradient_BCHW = decode(coded, expected_shape=self._features_BCHW.shape)
            yield from self._compare_all(Setting(estimator=name, gradient_bits=bits), gradient_BCHW, up, down)

    def _local_head(self) -> Iterator[Measurement]:
        """What the vehicle finds by itself; nothing is sent."""
        _, gradient_BCHW = self._training.head_gradients(self._linearised.features_BCHW, self._label_BHW)
        yield from self._compare_all(Setting(estimator="local-loss"), gradient_BCHW, [], [])

    def _spsa(self) -> Iterator[Measurement]:
        for name, subspace in self._subspaces.items():
            ask = self._asker(subspace)
            for count in self._study.queries:
                spsa = Spsa(perturbation=SPSA.perturbation, queries=count)
                answers = [ask(phi) for phi in spsa.propose(subspace.start(), self._seed)]
                estimate = spsa.estimate([feedback.losses[0] for _, feedback in answers])
                up, down = zip(*answers, strict=True)
                setting = Setting(estimator="spsa-gc", count=count, scale=SPSA.perturbation)
                yield self._compare(setting, estimate, (up, down), name)

    def _region_spsa(self) -> Iterator[Measurement]:
        z_BCHW = self._linearised.features_BCHW
        for name, subspace in self._subspaces.items():

            def forward(phi: Vector, frame: int, subspace: Subspace = subspace) -> Features:
                image_1HWC = self._image_BHWC[frame : frame + 1]
                features_CHW: Features = self._training.encoder.forward(subspace.theta_of(phi), image_1HWC)[0]
                return features_CHW

            for count in self._study.moves:
                plan = RegionSpsaPlan(moves=count)
                estimator = region_spsa_of(plan)
                moves = estimator.propose(subspace.start(), z_BCHW, forward, self._seed)
                query = MovedQuery(
                    **_HEADER,
                    frames=self._indices,
                    features=self._coded,
                    moves=tuple(encode(move_BCHW, plan.move_bits) for move_BCHW in moves),
                    map_size=estimator.map_size(z_BCHW.shape),
                )
                maps = coded_moved_maps(
                    query,
                    self._features_BCHW,
                    checked_moves(query, plan, z_BCHW.shape),
                    lambda copies, size=query.map_size: self._training.trainer.loss_maps(
                        copies, self._label_BHW, size
                    ),
                    plan.map_bits,
                )
                shape = (len(self._indices), 1 + count, *query.map_size)
                estimate = estimator.estimate(decode(maps, expected_shape=shape))
                setting = Setting(estimator="region-spsa", count=count, scale=plan.perturbation)
                yield self._compare(setting, estimate, ([query], [LossMaps(**_HEADER, maps=maps)]), name)

    def _asker(self, subspace: Subspace) -> Callable[[Vector], tuple[Query, Feedback]]:
        """φ → the query and its answer; a φ that more than one q asks for is evaluated once."""
        known: dict[bytes, tuple[Query, Feedback]] = {}

        def ask(phi: Vector) -> tuple[Query, Feedback]:
            if (key := phi.tobytes()) not in known:
                features_BCHW = self._training.encoder.forward(subspace.theta_of(phi), self._image_BHWC)
                coded = encode(features_BCHW, FEATURE_BITS)
                loss = self._training.trainer.evaluate_loss(
                    decode(coded, expected_shape=features_BCHW.shape), self._label_BHW
                )
                known[key] = (
                    Query(**_HEADER, frames=self._indices, features=coded),
                    Feedback(**_HEADER, losses=(loss,)),
                )
            return known[key]

        return ask

    def _activation(self) -> Iterator[Measurement]:
        evaluated, learning = _LossMaps(self._answered_map), _LossMaps(self._batch_statistics_map)
        for setting in self._activation_settings():
            widths = self._study.box_widths if setting.map_stride == 1 else (DEFAULTS.box_width,)
            yield from self._loss_maps(setting, evaluated, widths)
        for seeds in self._study.swept_seeds:
            setting = replace(DEFAULT_ACTIVATION, estimator="activation, batch statistics", count=seeds)
            yield from self._loss_maps(setting, learning, (DEFAULTS.box_width,))

    def _activation_settings(self) -> Iterator[Setting]:
        """Without the widths of the windows, which cost no answers."""
        study = self._study
        for scale in study.scales:
            for seeds in study.seeds if scale == DEFAULTS.scale else study.swept_seeds:
                for two_sided in (False, True):
                    swept = replace(DEFAULT_ACTIVATION, count=seeds, scale=scale, two_sided=two_sided)
                    yield swept
        for seeds in study.seeds:
            for stride in study.map_strides:
                if stride > 1:
                    yield replace(DEFAULT_ACTIVATION, count=seeds, map_stride=stride)

    def _loss_maps(self, setting: Setting, finest: _LossMaps, widths: Sequence[int]) -> Iterator[Measurement]:
        """One query, its maps read through windows of several widths."""
        stride = setting.map_stride
        estimators = [
            Activation(
                scale=setting.scale,
                seeds=setting.count,
                two_sided=setting.two_sided,
                map_stride=stride,
                box_width=width,
            )
            for width in widths
        ]
        proposals = [
            estimator.propose(self._linearised.features_BCHW, self._seed) for estimator in estimators
        ]
        query = SeededQuery(
            **_HEADER,
            frames=self._indices,
            features=self._coded,
            seeds=proposals[0].seeds,
            scale=pack_scale(proposals[0].scale_C),
            two_sided=setting.two_sided,
            map_size=estimators[0].map_size(self._features_BCHW.shape),
        )
        coded = coded_loss_maps(
            query,
            self._features_BCHW,
            proposals[0].scale_C,
            lambda copies: np.concatenate(
                [pooled(finest(features_BCHW), stride) for features_BCHW in copies]
            ),
            DEFAULTS.map_bits,
        )
        maps_BMyx = decode(coded, expected_shape=(len(self._indices), 1 + setting.count, *query.map_size))
        down = [LossMaps(**_HEADER, maps=coded)]
        for width, estimator in zip(widths, estimators, strict=True):
            estimate_BCHW = estimator.estimate(maps_BMyx)
            yield from self._compare_all(replace(setting, box_width=width), estimate_BCHW, [query], down)

    def _answered_map(self, features_BCHW: Features) -> NDArray[np.float32]:
        """The loss map that the cloud answers with."""
        return self._training.trainer.loss_map(features_BCHW, self._label_BHW, self._cells_yx)

    def _batch_statistics_map(self, features_BCHW: Features) -> NDArray[np.float32]:
        """The loss map of the network as a training step sees it."""
        with torch.no_grad():
            logits_BKhw = self._learning(torch.from_numpy(features_BCHW))
            label_Bhw = downsample_labels(torch.from_numpy(self._label_BHW), logits_BKhw.shape[-2:])
            map_Byx: NDArray[np.float32] = loss_map(logits_BKhw, label_Bhw, self._cells_yx).numpy()
        return map_Byx


class _LossMaps:
    """features_BCHW → loss maps; features that more than one query asks about are evaluated once."""

    def __init__(self, evaluate: Callable[[Features], NDArray[np.float32]]) -> None:
        self._evaluate = evaluate
        self._known: dict[bytes, NDArray[np.float32]] = {}

    def __call__(self, features_BCHW: Features) -> NDArray[np.float32]:
        key = hashlib.blake2b(features_BCHW.tobytes(), digest_size=16).digest()
        if key not in self._known:
            self._known[key] = self._evaluate(features_BCHW)
        return self._known[key]


def pooled(maps_Byx: NDArray[np.float32], stride: int) -> NDArray[np.float32]:
    """The map of coarser cells: each is the mean of the finer ones that it covers."""
    frames, rows, columns = maps_Byx.shape
    cells = maps_Byx.reshape(frames, rows // stride, stride, columns // stride, stride)
    means_Byx: NDArray[np.float32] = cells.mean(axis=(2, 4))
    return means_Byx


def cosine(a: Vector, b: Vector) -> float:
    """0 where one of them is all zero."""
    left, right = a.astype(np.float64), b.astype(np.float64)
    lengths = math.sqrt(float(left @ left) * float(right @ right))
    return float(left @ right) / lengths if lengths > 0 else 0.0
