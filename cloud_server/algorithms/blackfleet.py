"""BlackFleet: encoders learn from a local loss, all vehicles at once; only features and labels cross.

Each vehicle trains its encoder with a head of its own before its first upload and in every round. The cloud
trains one network on the union of a round's uploads and, as BlackFed v2, keeps each vehicle's best weights.
Legend: n frames, C channels, H W feature rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cloud_server.algorithms.base import Context, TurnPlan, evaluation_plan
from cloud_server.algorithms.one_network import OneNetwork
from cloud_server.config import CloudConfig
from cloud_server.rates import SCHEDULES
from cloud_server.schedule import Kind, Stage, all_together
from cloud_server.turns import Features
from protocol.batches import batch_bounds
from protocol.messages import LocalLossPlan
from protocol.noise import derive_seed, permutation

_Group = tuple[NDArray[np.float32], NDArray[np.uint8]]
"""features_nCHW of one shape, from all vehicles that have it, and their label_nHW."""
_LIVE_LINES_A_STAGE = 10


class BlackFleet(OneNetwork):
    """No vehicle waits for another's turn, and no answer of the cloud tells anything of its network."""

    def __init__(self, context: Context) -> None:
        super().__init__(context, personal=True)
        self.stages = all_together(self._config.vehicles, self._config.rounds)
        self._arrived: dict[str, Mapping[str, Features]] = {}
        """By vehicle: what it has uploaded in this stage, once its turn is done."""

    def plan(self, stage: Stage, vehicle: str) -> TurnPlan:
        local, batch_size = self._config.local_loss, self._config.first_order.batch_size
        if stage.kind is not Kind.TRAIN:
            return evaluation_plan(self._context, stage, vehicle, batch_size)
        shares = local_rate_shares(self._config, stage.round)
        return TurnPlan(
            learner=LocalLossPlan(rate=local.rate, head_rate=local.head_rate, rate_shares=shares),
            epochs=len(shares),
            batches=0,
            batch_size=batch_size,
            uploads=("train", "val"),
        )

    def begin(self, stage: Stage, vehicle: str) -> None:
        self._arrived.pop(vehicle, None)

    def turn_done(self, stage: Stage, vehicle: str, uploads: Mapping[str, Features]) -> None:
        if stage.kind is Kind.TRAIN:
            self._arrived[vehicle] = uploads
        else:
            self._evaluate(stage, vehicle, uploads)

    def stage_done(self, stage: Stage) -> None:
        if stage.kind is Kind.TRAIN:
            self._learn(stage)
            for vehicle in stage.vehicles:
                self._validate(stage, vehicle, self._arrived[vehicle]["val"])
        self._arrived.clear()

    def _learn(self, stage: Stage) -> None:
        """First-order epochs over the union of the uploads: no vehicle's frames come last."""
        first, log = self._config.first_order, self._context.run_log
        groups = self._groups(stage)
        seed = derive_seed(self._config.seed, "first-order", stage.number)
        frames = sum(len(label_nHW) for _, label_nHW in groups)
        steps = first.epochs * sum(len(batch_bounds(len(label), first.batch_size)) for _, label in groups)
        if steps == 0:
            return
        self._trainer.span_schedule(self._config.rounds * steps)
        means: list[float] = []
        done = 0
        for epoch in range(first.epochs):
            total = 0.0
            for (features_nCHW, label_nHW), chosen in _batches(groups, first.batch_size, seed, epoch):
                self._context.check_stop()
                loss = self._trainer.train_step(features_nCHW[chosen], label_nHW[chosen])
                total += loss * len(chosen)
                done += 1
                if done % max(1, steps // _LIVE_LINES_A_STAGE) == 0:
                    log.event("learning", stage=stage.number, done=done, total=steps, loss=loss)
            means.append(total / frames)
        self.progress.frames_seen += first.epochs * frames
        self.progress.loss = dict.fromkeys(stage.vehicles, means[-1])
        log.event("learned", stage=stage.number, losses=[round(mean, 5) for mean in means])
        log.scalar("loss", means[-1], stage.number)

    def _groups(self, stage: Stage) -> list[_Group]:
        """The stage's train frames by the shape of their features, vehicles in the stage's order."""
        pieces: dict[tuple[int, ...], list[_Group]] = {}
        for vehicle in stage.vehicles:
            train = self._arrived[vehicle]["train"]
            label_nHW = self._context.labels.batch(vehicle, train.indices)
            pieces.setdefault(train.features_BCHW.shape[1:], []).append((train.features_BCHW, label_nHW))
        return [
            (
                np.concatenate([features for features, _ in group]),
                np.concatenate([label for _, label in group]),
            )
            for group in pieces.values()
        ]


def local_rate_shares(config: CloudConfig, round_number: int) -> tuple[float, ...]:
    """Each local epoch's share of the highest rates: the schedule of the whole run, at the epoch's middle.

    The warm-up belongs to the first round's turn.
    """
    local = config.local_loss
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
        order = permutation(derive_seed(seed, "frames", epoch, number), len(group[1]))
        batches += [(group, order[start:stop]) for start, stop in batch_bounds(len(order), batch_size)]
    for position in permutation(derive_seed(seed, "batches", epoch), len(batches)):
        yield batches[position]
