"""Federated averaging (McMahan et al., AISTATS 2017): weights go down, are trained by vehicles, and come up.

With client sampling, federated optimisers (`server_optimizers`), SiloBN (arXiv 2008.07424) and, as `fedprox`,
a proximal term on the vehicles (arXiv 1812.06127). No feature and no label crosses the network; vehicles
evaluate themselves and report counts of pixels. The cloud averages tensors by name and knows no architecture.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import torch

from cloud_server.algorithms.base import (
    Context,
    Scores,
    TrainingProgress,
    TurnPlan,
    evaluation_splits,
)
from cloud_server.algorithms.scoring import note_score
from cloud_server.config import CloudConfig
from cloud_server.desk.turns import Features
from cloud_server.errors import CloudError, RequestError
from cloud_server.schedule import Kind, Stage
from cloud_server.training.averages import Average, LocalUpdate, average, negative_variance
from cloud_server.training.server_optimizers import build_server_optimizer
from cloud_server.training.staleness import caught_up
from evaluation.errors import EvaluationError
from evaluation.scores import ConfusionMatrix
from protocol.batches import batch_count
from protocol.codec.weights import WeightArrays, WeightsError, WeightTensor, pack, unpack
from protocol.local_model import FOLDER_NAME, LocalModel, LocalModelError
from protocol.messages import FederatedPlan, SplitScores, Turn, Update
from protocol.noise import derive_seed, permutation
from protocol.plans.federated import drawn_count
from protocol.rates import SCHEDULES

log = logging.getLogger(__name__)

_GLOBAL = "global"


@dataclass(kw_only=True)
class _Report:
    """What has arrived in one attempt at a turn."""

    update: LocalUpdate | None = None
    scores: dict[str, tuple[int, ConfusionMatrix]] = field(default_factory=dict)
    """By split: number of frames, counts over them."""
    begun: WeightArrays = field(default_factory=dict)
    """The weights that the turn began with."""
    begun_after: int = 0
    """How often the cloud had moved them by then."""


class FedAvg:
    """Rounds of local training and averaging."""

    def __init__(self, context: Context, *, proximal: bool = False) -> None:
        """Read the initial weights; `proximal`: vehicles are held near the weights that a round begins with.

        Raises:
            CloudError: the run folder holds no local model, or one for other labels.
        """
        self._context = context
        self._config = context.config
        self._federated = context.config.way(FederatedPlan)
        if not proximal:
            self._federated = msgspec.structs.replace(self._federated, proximal=0.0)
        name = context.config.algorithm
        if self._config.first_order.epochs < 1:
            raise CloudError(f"{name} needs at least 1 local epoch, got first_order.epochs = 0")
        folder = context.run_folder / FOLDER_NAME
        try:
            model = LocalModel.load(folder)
        except LocalModelError as error:
            raise CloudError(f"{name} needs the initial weights of the whole network: {error}") from error
        if model.spec.label_space != context.label_space.name:
            raise CloudError(
                f"the local model in {folder} is for {model.spec.label_space} labels, this run is about "
                f"{context.label_space.name}"
            )
        self._shapes = model.spec.shapes(statistics=self._federated.statistics == "average")
        self._statistics = frozenset(model.spec.statistic_names)
        self._weights: WeightArrays = {name: model.weights[name] for name in self._shapes}
        self._packed = pack(self._weights)
        self._optimizer = build_server_optimizer(self._federated)
        self._reports: dict[str, _Report] = {}
        self._done: set[str] = set()
        self._moves = 0
        """How often this process has moved the weights."""
        self._best_miou = -math.inf
        self._rounds_without_gain = 0
        self.stages = federated_stages(self._config)
        self.scores = Scores()
        self.progress = TrainingProgress()

    # What the server asks -----------------------------------------------------------------------------

    def is_needed(self, stage: Stage) -> bool:
        """False for training after the mIoU has converged."""
        patience = self._federated.patience_rounds
        return stage.kind is not Kind.TRAIN or patience is None or self._rounds_without_gain < patience

    def plan(self, stage: Stage, vehicle: str) -> TurnPlan:
        first = self._config.first_order
        train = stage.kind is Kind.TRAIN
        splits = ("val",) if train else evaluation_splits(self._context, stage, vehicle)
        shares = epoch_rate_shares(self._config, stage.round) if train else ()
        return TurnPlan(
            learner=self._federated,
            first_order=first,
            rate_shares=shares,
            scores=splits,
            save_predictions=stage.kind is Kind.FINAL,
            epochs=len(shares),
            batches=0,
            batch_size=first.batch_size,
            uploads=(),
        )

    def begin(self, stage: Stage, vehicle: str) -> None:
        self._reports[vehicle] = _Report()

    def weights(self) -> tuple[WeightTensor, ...]:
        """The global weights."""
        return self._packed

    def begin_at(self, turn: Turn) -> tuple[WeightTensor, ...]:
        report = self._reports[turn.vehicle]
        report.begun, report.begun_after = self._weights, self._moves
        return self._packed

    def take_update(self, turn: Turn, update: Update) -> None:
        report, frames = self._reports[turn.vehicle], self._context.train_frames[turn.vehicle]
        if turn.epochs == 0:
            raise RequestError("this turn asks for no update")
        if report.update is not None:
            raise RequestError("a second update in the same turn")
        if update.samples != frames:
            raise RequestError(f"update from {update.samples} train frames, {turn.vehicle!r} has {frames}")
        if not math.isfinite(update.loss):
            raise RequestError(f"loss must be finite, got {update.loss}")
        try:
            weights = unpack(update.tensors, self._shapes)
        except WeightsError as error:
            raise RequestError(f"update rejected: {error}") from error
        if name := negative_variance(weights):
            raise RequestError(f"update rejected: weights {name!r} are variances, and some are below 0")
        report.update = LocalUpdate(samples=update.samples, loss=update.loss, weights=weights)

    def take_scores(self, turn: Turn, scores: SplitScores) -> None:
        report = self._reports[turn.vehicle]
        if scores.split not in turn.scores or scores.split in report.scores:
            raise RequestError(f"scores of split {scores.split!r} are not asked for now")
        try:
            matrix = ConfusionMatrix.from_dict({"counts": scores.counts}, self._context.label_space)
        except EvaluationError as error:
            raise RequestError(f"scores rejected: {error}") from error
        report.scores[scores.split] = (scores.frames, matrix)

    def check_complete(self, turn: Turn) -> None:
        report = self._reports[turn.vehicle]
        missing = [split for split in turn.scores if split not in report.scores]
        if missing:
            raise RequestError(f"turn {turn.turn_id} ended without the scores of {', '.join(missing)}")
        if turn.epochs and report.update is None:
            raise RequestError(f"turn {turn.turn_id} ended without an update")

    def turn_done(self, stage: Stage, vehicle: str, uploads: Mapping[str, Features]) -> None:
        report = self._reports[vehicle]
        self._done.add(vehicle)
        log_event = self._context.events.event
        for split, (frames, matrix) in report.scores.items():
            miou = matrix.mean_iou()
            if stage.kind is Kind.TRAIN:
                self.progress.val_miou[vehicle] = miou if math.isfinite(miou) else 0.0
                log_event(
                    "validation",
                    stage=stage.number,
                    round=stage.round,
                    vehicle=vehicle,
                    miou=miou,
                    best=max(miou, self._best_miou),
                )
                self._context.events.scalar(f"val_miou/{vehicle}", miou, stage.number)
                continue
            note_score(self.scores, self._context.events, stage, vehicle, split, matrix, frames=frames)
        if report.update is not None:
            self.progress.loss[vehicle] = report.update.loss
            first = self._config.first_order
            self.progress.steps += first.passes * batch_count(report.update.samples, first.batch_size)
            self.progress.frames_seen += report.update.samples * self._config.first_order.passes
            self._context.events.scalar(f"loss/{vehicle}", report.update.loss, stage.number)

    def stage_done(self, stage: Stage) -> None:
        if stage.kind is Kind.TRAIN:
            # In the fleet's order, whatever the order of arrival: sums of floats depend on it.
            reports = {vehicle: self._reports[vehicle] for vehicle in stage.vehicles if vehicle in self._done}
            self._average(
                stage,
                {
                    vehicle: self._caught_up(report, report.update)
                    for vehicle, report in reports.items()
                    if report.update is not None
                },
            )
            self._note_gain(stage)
        for vehicle in self._done:
            del self._reports[vehicle]  # those of others may be of turns that go on
        self._done.clear()

    # What a checkpoint holds --------------------------------------------------------------------------

    def tensors(self) -> dict[str, torch.Tensor]:
        content: dict[str, Mapping[str, Any]] = {_GLOBAL: self._weights, **self._optimizer.moments}
        return {
            f"{group}/{name}": torch.from_numpy(np.array(array))
            for group, arrays in content.items()
            for name, array in arrays.items()
        }

    def meta(self) -> dict[str, Any]:
        best = self._best_miou
        return {
            "scores": self.scores.to_dict(),
            "progress": self.progress.to_dict(),
            "best_miou": best if math.isfinite(best) else None,
            "rounds_without_gain": self._rounds_without_gain,
        }

    def restore(self, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        groups: dict[str, dict[str, Any]] = {}
        for key, tensor in tensors.items():
            group, _, name = key.partition("/")
            groups.setdefault(group, {})[name] = tensor.numpy().copy()
        weights = groups.pop(_GLOBAL, {})
        if {name: array.shape for name, array in weights.items()} != self._shapes:
            raise CloudError("it holds the weights of another network")
        self._weights = {name: weights[name] for name in self._shapes}
        self._packed = pack(self._weights)
        self._optimizer.moments = dict(groups)
        self.scores = Scores.from_dict(meta["scores"], self._context.label_space)
        self.progress = TrainingProgress.from_dict(meta["progress"])
        self._best_miou = -math.inf if meta["best_miou"] is None else meta["best_miou"]
        self._rounds_without_gain = meta["rounds_without_gain"]

    def committed(self) -> None:
        pass  # everything is in the checkpoint

    # A round's end ------------------------------------------------------------------------------------

    def _caught_up(self, report: _Report, update: LocalUpdate) -> LocalUpdate:
        """The update as it counts now, where the weights have moved since its turn began."""
        behind = self._moves - report.begun_after
        if behind == 0:
            return update
        return caught_up(update, report.begun, self._weights, behind, self._statistics)

    def _average(self, stage: Stage, updates: Mapping[str, LocalUpdate]) -> None:
        """Statistics become the average; parameters what the server's optimiser makes of it."""
        averaged = average(updates, self._weights, self._federated)
        self._note_unlikely(stage, averaged)
        now = {name: self._weights[name].astype(np.float64) for name in self._shapes}
        step = self._optimizer.step(
            {
                name: now[name] - averaged.weights[name]
                for name in self._shapes
                if name not in self._statistics
            }
        )
        moved = {
            name: now[name] - step[name] if name in step else averaged.weights[name] for name in self._shapes
        }
        for name, array in moved.items():
            if not np.isfinite(array).all():
                raise CloudError(f"the global weights diverged ({name}); lower federated.server_rate")
        self._weights = {name: array.astype(np.float32) for name, array in moved.items()}
        self._packed = pack(self._weights)
        self._moves += 1

    def _note_unlikely(self, stage: Stage, averaged: Average) -> None:
        """Tell whose weights count less than they would."""
        for event, vehicles in (("left-out", averaged.left_out), ("shortened", averaged.shortened)):
            for vehicle in vehicles:
                log.warning("the weights of vehicle %s in round %d are %s", vehicle, stage.round, event)
                self._context.events.event(event, vehicle=vehicle, stage=stage.number)
        self.progress.leave_out(averaged.left_out)

    def _note_gain(self, stage: Stage) -> None:
        """Follow the mean validation mIoU, which is of the weights that the round began with."""
        miou = self.progress.mean_val_miou or 0.0
        if miou > self._best_miou:
            self._best_miou, self._rounds_without_gain = miou, 0
        else:
            self._rounds_without_gain += 1
        if self._rounds_without_gain == self._federated.patience_rounds:
            log.info("converged in round %d: mean validation mIoU %.4f", stage.round, self._best_miou)
            self._context.events.event("converged", round=stage.round, best_val_miou=self._best_miou)


def federated_stages(config: CloudConfig) -> tuple[Stage, ...]:
    """Evaluation of everyone, a stage a round with the vehicles drawn for it, evaluation of everyone."""
    plan: list[tuple[Kind, tuple[str, ...]]] = [(Kind.INITIAL, config.vehicles)]
    plan += [(Kind.TRAIN, drawn_vehicles(config, number)) for number in range(1, config.rounds + 1)]
    plan.append((Kind.FINAL, config.vehicles))
    return tuple(
        Stage(
            number=number,
            round=number,
            kind=kind,
            vehicles=vehicles,
            deadline_s=config.way(FederatedPlan).deadline_s,
        )
        for number, (kind, vehicles) in enumerate(plan)
    )


def drawn_vehicles(config: CloudConfig, round_number: int) -> tuple[str, ...]:
    """The vehicles of a round, drawn from the seed without replacement, in the fleet's order."""
    count = drawn_count(config.way(FederatedPlan), len(config.vehicles))
    order = permutation(derive_seed(config.seed, "clients", round_number), len(config.vehicles))
    return tuple(config.vehicles[position] for position in sorted(order[:count].tolist()))


def epoch_rate_shares(config: CloudConfig, round_number: int, passes: int | None = None) -> tuple[float, ...]:
    """Each local pass's share of the highest rate: the schedule of the whole run, of rounds times
    passes, at the pass's middle. `passes`: None = those of `first_order`, replay's among them."""
    first = config.first_order
    passes = first.passes if passes is None else passes
    share = SCHEDULES[first.schedule]
    begun = (round_number - 1) * passes
    halves = 2 * passes * config.rounds + 1
    return tuple(share(2 * (begun + number) + 1, halves) for number in range(passes))
