"""BlackFleet: encoders learn from a local loss, all vehicles at once; only features, labels, loss maps cross.

Each vehicle trains its encoder with a head of its own before its first upload and in every round, from the
second on with more weight where the cloud's loss lay. The cloud trains one network on the union of a round's
uploads and serves each vehicle with weights chosen, or with statistics estimated, for it.
Legend: n frames, C channels, H W feature rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from cloud_server.algorithms.base import Context, TurnPlan, evaluation_plan, upload_limits
from cloud_server.algorithms.closing import overlaps
from cloud_server.algorithms.kept_loss_maps import KeptLossMaps
from cloud_server.algorithms.one_network import OneNetwork
from cloud_server.algorithms.quarantine import folds
from cloud_server.algorithms.replay import EVERYONE
from cloud_server.algorithms.shared_encoder import SharedEncoder
from cloud_server.algorithms.traits import one_encoder
from cloud_server.config import CloudConfig
from cloud_server.desk.turns import Features
from cloud_server.schedule import Kind, Stage, all_together, apart
from cloud_server.storage.vehicle_store import VehicleStore
from evaluation.latest import FRAMES_A_VEHICLE, evenly
from protocol.batches import batch_bounds, batch_count
from protocol.codec.tensor import EncodedTensor
from protocol.messages import LocalLossPlan
from protocol.noise import derive_seed, permutation
from protocol.plans.blackfleet import BlackFleetSettings
from protocol.plans.sharing import Sharing
from protocol.rates import SCHEDULES

_LIVE_LINES_A_STAGE = 10


class _Group(NamedTuple):
    """Uploads of one feature shape, from all vehicles that have it."""

    features_nCHW: NDArray[np.float32]
    label_nHW: NDArray[np.uint8]
    frames: list[tuple[str, int]]
    """Vehicle and number of each frame."""


class BlackFleet(OneNetwork):
    """No vehicle waits for another's turn, and the cloud tells of its network only where its loss lay."""

    def __init__(self, context: Context, *, feedback: bool = True) -> None:
        """`feedback`: vehicles are told where the loss lay, as the settings say; else never."""
        config = context.config
        serving = config.way(BlackFleetSettings).serving
        self._encoder = SharedEncoder(context, averages=True)
        super().__init__(context, personal=serving == "best", shared=self._encoder)
        local = config.way(LocalLossPlan)
        self._local = local if feedback else msgspec.structs.replace(local, weight_power=0.0)
        self._statistics = (
            VehicleStore(context.run_folder / "cloud" / "statistics", capacity=config.store_capacity)
            if serving == "statistics"
            else None
        )
        self._loss_maps = KeptLossMaps(
            batch_size=config.first_order.batch_size, map_stride=self._local.weight_map_stride
        )
        sharing = config.way(Sharing)
        self.stages = (
            apart(config.vehicles, config.rounds, sharing.deadline_s)
            if one_encoder(config)
            else all_together(config.vehicles, config.rounds)
        )
        self._overlaps = overlaps(config)
        self._arrived: dict[str, Mapping[str, Features]] = {}
        """By vehicle: what it has uploaded in this stage, once its turn is done."""

    def plan(self, stage: Stage, vehicle: str) -> TurnPlan:
        sharing, batch_size = self._encoder.turn(stage), self._config.first_order.batch_size
        if stage.kind is Kind.LEARN:
            return replace(self._learning(stage, vehicle), sharing=sharing)
        if stage.kind is not Kind.TRAIN:
            return replace(evaluation_plan(self._context, stage, vehicle, batch_size), sharing=sharing)
        resting = TurnPlan(learner=None, epochs=0, batches=0, batch_size=batch_size, uploads=())
        return replace(
            self._learning(stage, vehicle) if sharing is None else resting,
            uploads=("train", "val") if self._config.network.learns or self._statistics else ("val",),
            limits=upload_limits(self._config, stage),
            sharing=sharing,
        )

    def _learning(self, stage: Stage, vehicle: str) -> TurnPlan:
        shares = local_rate_shares(self._config, stage.round)
        return TurnPlan(
            learner=self._local,
            rate_shares=shares,
            loss_map_frames=self._mapped_frames(vehicle),
            epochs=len(shares),
            batches=0,
            batch_size=self._config.first_order.batch_size,
            uploads=(),
        )

    def begin(self, stage: Stage, vehicle: str) -> None:
        self._arrived.pop(vehicle, None)
        self._encoder.begin(vehicle)

    def turn_done(self, stage: Stage, vehicle: str, uploads: Mapping[str, Features]) -> None:
        if stage.kind is Kind.TRAIN:
            self._arrived[vehicle] = uploads
        elif stage.kind is not Kind.LEARN:
            self._evaluate(stage, vehicle, uploads)

    def stage_done(self, stage: Stage) -> None:
        if stage.kind is Kind.LEARN:
            self.progress.leave_out(self._encoder.average(stage))
        if stage.kind is Kind.TRAIN:
            if self._config.network.learns:
                self._learn(stage)
                self._keep_loss_maps(stage)
            for vehicle in stage.vehicles:
                self._estimate_statistics(stage, vehicle)
                self._validate(stage, vehicle, self._arrived[vehicle]["val"])
        self._arrived.clear()

    def kept_loss_maps(self, vehicle: str, indices: tuple[int, ...]) -> EncodedTensor:
        return self._loss_maps.find(vehicle, indices)

    def tensors(self) -> dict[str, torch.Tensor]:
        return super().tensors() | self._loss_maps.tensors()

    def meta(self) -> dict[str, Any]:
        return {
            **super().meta(),
            "statistics": self._statistics.references() if self._statistics else {},
        }

    def restore(self, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        super().restore(tensors, meta)
        self._loss_maps.restore(tensors)
        if self._statistics:
            self._statistics.restore(meta["statistics"])

    def committed(self) -> None:
        super().committed()
        if self._statistics:
            self._statistics.prune()

    @property
    def _weights_losses(self) -> bool:
        return self._local.weight_power > 0 and self._local.epochs > 0 and self._config.network.learns

    def _mapped_frames(self, vehicle: str) -> tuple[int, ...] | None:
        """See `Turn.loss_map_frames`: empty where all of the vehicle's train frames have loss maps.

        None where none has: in the first round, and after one that the vehicle has missed.
        """
        mapped = self._loss_maps.frames(vehicle)
        if not mapped:
            return None
        return mapped if len(mapped) < self._context.train_frames[vehicle] else ()

    def _keep_loss_maps(self, stage: Stage) -> None:
        """Where the loss lies after the learning: what the vehicles weight theirs by in the next round."""
        if not self._overlaps:  # else those of a turn under way may be asked for
            self._loss_maps.clear()
        if not self._weights_losses or stage.round == self._config.rounds:
            return
        for vehicle in stage.vehicles:
            self._context.check_stop()
            train = self._arrived[vehicle]["train"]
            label_nHW = self._context.labels_of(vehicle, train)
            maps = self._loss_maps.keep(vehicle, train, label_nHW, self._trainer)
            self._context.latest.keep_loss_maps(
                vehicle,
                stage.number,
                (
                    (*self._context.labels.full(vehicle, train.indices[place]), maps[place])
                    for place in evenly(len(train.indices), FRAMES_A_VEHICLE)
                ),
            )

    def _estimate_statistics(self, stage: Stage, vehicle: str) -> None:
        if self._statistics:
            statistics = self._trainer.estimate_statistics(
                self._arrived[vehicle]["train"].features_BCHW,
                batch_size=self._config.first_order.batch_size,
                seed=derive_seed(self._config.seed, "statistics", stage.number, vehicle),
            )
            self._statistics.put(vehicle, statistics, score=0.0, turn_id=stage.number)

    def _own_statistics(self, vehicle: str) -> AbstractContextManager[None]:
        """The latest weights, with the vehicle's statistics where it has some, for as long as it lasts."""
        statistics = self._statistics.get(vehicle) if self._statistics else None
        return self._trainer.borrowed_weights(
            {**self._trainer.weights(), **statistics} if statistics else None
        )

    def _validate(self, stage: Stage, vehicle: str, val: Features) -> None:
        with self._own_statistics(vehicle):
            super()._validate(stage, vehicle, val)

    @contextmanager
    def serving(self, vehicle: str) -> Iterator[None]:
        with self._own_statistics(vehicle) if self._statistics else super().serving(vehicle):
            yield

    def _learn(self, stage: Stage) -> None:
        """First-order epochs over the union of the uploads: no vehicle's frames come last; each step is
        followed by replay."""
        first, log = self._config.first_order, self._context.events
        heard = self._heard(stage)
        groups = self._groups(stage, heard)
        seed = derive_seed(self._config.seed, "first-order", stage.number)
        frames = sum(len(group.frames) for group in groups)
        steps = first.passes * sum(batch_count(len(g.frames), first.batch_size) for g in groups)
        if steps == 0:
            return
        for vehicle in heard:
            self._replay.keep(vehicle, self._arrived[vehicle]["train"])
        self._trainer.span_schedule(self._config.rounds * steps)
        means: list[float] = []
        done = replayed_frames = 0
        for epoch in range(first.epochs):
            total = 0.0
            for group, chosen in _batches(groups, first.batch_size, seed, epoch):
                self._context.check_stop()
                loss = self._trainer.train_step(group.features_nCHW[chosen], group.label_nHW[chosen])
                for vehicle, index in (group.frames[position] for position in chosen):
                    self._context.ledger.visit(epoch, vehicle, [index])
                total += loss * len(chosen)
                replayed_frames += self._replay.follow_up(EVERYONE, len(chosen), stage.number, done)
                done += 1 + first.replay_steps
                if done % max(1, steps // _LIVE_LINES_A_STAGE) <= first.replay_steps:
                    log.event("learning", stage=stage.number, done=done, total=steps, loss=loss)
            means.append(total / frames)
        self.progress.steps += done
        self.progress.frames_seen += first.epochs * frames + replayed_frames
        self.progress.loss = dict.fromkeys(stage.vehicles, means[-1])
        log.event("learned", stage=stage.number, losses=[round(mean, 5) for mean in means])
        log.scalar("loss", means[-1], stage.number)

    def _heard(self, stage: Stage) -> tuple[str, ...]:
        """Those of the stage's vehicles whose train frames are learnt from."""
        if not self._quarantine.is_on:
            return stage.vehicles
        if self._trainer.steps == 0:
            self._look_by_folds(stage)
        else:
            for vehicle in stage.vehicles:
                self._quarantine.look(vehicle, self._arrived[vehicle]["train"])
        heard = tuple(
            vehicle for vehicle in stage.vehicles if self._quarantine.counts(stage, vehicle, self.progress)
        )
        for vehicle in set(stage.vehicles).difference(heard):
            self._replay.forget(vehicle)
        return heard

    def _look_by_folds(self, stage: Stage) -> None:
        """Of a network that knows nothing yet: train it for the round's epochs on all parts of the vehicles
        but one, look at that one, and go back; for each part."""
        first, untrained = self._config.first_order, self._trainer.state_dict()
        for part in folds(stage.vehicles):
            groups = self._groups(stage, [vehicle for vehicle in stage.vehicles if vehicle not in part])
            seed = derive_seed(self._config.seed, "part", stage.number, part[0])
            for epoch in range(first.epochs):
                for group, chosen in _batches(groups, first.batch_size, seed, epoch):
                    self._context.check_stop()
                    self._trainer.train_step(group.features_nCHW[chosen], group.label_nHW[chosen])
            for vehicle in part:
                self._quarantine.look(vehicle, self._arrived[vehicle]["train"])
            self._trainer.load_state_dict(untrained)

    def _groups(self, stage: Stage, vehicles: Sequence[str]) -> list[_Group]:
        """Train frames of the stage by the shape of their features, vehicles in the stage's order."""
        pieces: dict[tuple[int, ...], list[_Group]] = {}
        for vehicle in vehicles:
            train = self._arrived[vehicle]["train"]
            label_nHW = self._context.labels_of(vehicle, train)
            frames = [(vehicle, index) for index in train.indices]
            piece = _Group(train.features_BCHW, label_nHW, frames)
            pieces.setdefault(train.features_BCHW.shape[1:], []).append(piece)
        return [
            _Group(
                np.concatenate([piece.features_nCHW for piece in group]),
                np.concatenate([piece.label_nHW for piece in group]),
                [frame for piece in group for frame in piece.frames],
            )
            for group in pieces.values()
        ]


def local_rate_shares(config: CloudConfig, round_number: int) -> tuple[float, ...]:
    """Each local epoch's share of the highest rates: the schedule of the whole run, at the epoch's middle.

    The warm-up belongs to the first round's turn.
    """
    local = config.way(LocalLossPlan)
    share = SCHEDULES[local.schedule]
    first = 0 if round_number == 1 else local.warm_up_epochs + (round_number - 1) * local.epochs
    end = local.warm_up_epochs + round_number * local.epochs
    halves = 2 * (local.warm_up_epochs + config.rounds * local.epochs) + 1
    return tuple(share(2 * epoch + 1, halves) for epoch in range(first, end))


def _batches(
    groups: Sequence[_Group], batch_size: int, seed: int, epoch: int
) -> Iterator[tuple[_Group, NDArray[np.int64]]]:
    """Every frame once: (its group, frames of one batch), in an order of the epoch's own."""
    batches = []
    for number, group in enumerate(groups):
        order = permutation(derive_seed(seed, "frames", epoch, number), len(group.frames))
        batches += [(group, order[start:stop]) for start, stop in batch_bounds(len(order), batch_size)]
    for position in permutation(derive_seed(seed, "batches", epoch), len(batches)):
        yield batches[position]
