"""A local loss on the vehicle, rare uploads, one network in the cloud: `cse-fsl` and, with aligned heads,
`fsl-sage`.

After CSE-FSL (Mu and Shen, arXiv 2302.05599 and 2507.15816) and FSL-SAGE (arXiv 2505.23182). Each round all
vehicles learn by a head of their own, uploading the features of every h-th batch; the cloud learns from what
came; encoders and heads are averaged. No gradient returns, but in `fsl-sage` for the alignment of heads.
Legend: B frames, C channels, H W feature rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import zip_longest

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloud_server.algorithms.base import Context, TurnPlan, evaluation_plan, validation_plan
from cloud_server.algorithms.fedavg import epoch_rate_shares
from cloud_server.algorithms.one_network import OneNetwork
from cloud_server.algorithms.replay import EVERYONE
from cloud_server.algorithms.shared_encoder import always_shared
from cloud_server.desk.turns import Features
from cloud_server.schedule import Kind, Stage, apart
from protocol.batches import batch_count
from protocol.messages import CseFslPlan, FslSagePlan
from protocol.plans.cse_fsl import uploaded_batches
from protocol.plans.sharing import Sharing


class CseFsl(OneNetwork):
    """Vehicles learn and upload side by side; then the cloud takes one step on each batch that came."""

    def __init__(self, context: Context) -> None:
        config = context.config
        self._encoder = always_shared(context, head=True)
        super().__init__(context, personal=False, shared=self._encoder)
        self.stages = apart(config.vehicles, config.rounds, config.way(Sharing).deadline_s)
        self._smashed: dict[str, dict[int, Features]] = {}
        """By vehicle and step: what has come in this attempt at its turn."""

    @property
    def _plan(self) -> CseFslPlan | FslSagePlan:
        return self._config.way(CseFslPlan)

    def _learner(self, stage: Stage) -> CseFslPlan | FslSagePlan:
        """How vehicles learn in a stage."""
        return self._plan

    def plan(self, stage: Stage, vehicle: str) -> TurnPlan:
        first = self._config.first_order
        sharing = self.shared_encoder.turn(stage)
        if stage.kind is Kind.LEARN:
            shares = epoch_rate_shares(self._config, stage.round, passes=first.epochs)
            return TurnPlan(
                learner=self._learner(stage),
                rate_shares=shares,
                epochs=len(shares),
                batches=0,
                batch_size=first.batch_size,
                uploads=(),
                sharing=sharing,
            )
        if stage.kind is Kind.TRAIN:
            return replace(validation_plan(self._config, stage), sharing=sharing)
        plan = evaluation_plan(self._context, stage, vehicle, first.batch_size)
        return replace(plan, sharing=sharing)

    def begin(self, stage: Stage, vehicle: str) -> None:
        self._smashed[vehicle] = {}
        self.shared_encoder.begin(vehicle)

    def take_smashed(self, vehicle: str, step: int, batch: Features) -> None:
        self._smashed[vehicle][step] = batch

    def turn_done(self, stage: Stage, vehicle: str, uploads: Mapping[str, Features]) -> None:
        if stage.kind is Kind.TRAIN:
            self._validate(stage, vehicle, uploads["val"])
        elif stage.kind is not Kind.LEARN:
            self._evaluate(stage, vehicle, uploads)

    def stage_done(self, stage: Stage) -> None:
        if stage.kind is Kind.LEARN:
            self.progress.leave_out(self._encoder.average(stage))
            if self._config.network.learns:
                self._learn(stage)
        self._smashed.clear()

    def _learn(self, stage: Stage) -> None:
        """One step on each batch, followed by replay: first the first of each vehicle, then the second."""
        log = self._context.events
        batches = list(self._in_turns(stage))
        for vehicle, batch in batches:
            self._replay.keep(vehicle, batch)
        self._trainer.span_schedule(self._steps_of_run())
        losses: dict[str, list[tuple[float, int]]] = {vehicle: [] for vehicle in stage.vehicles}
        for done, (vehicle, batch) in enumerate(batches):
            self._context.check_stop()
            frames = len(batch.indices)
            label_BHW = self._context.labels_of(vehicle, batch)
            losses[vehicle].append((self._trainer.train_step(batch.features_BCHW, label_BHW), frames))
            replayed = self._replay.follow_up(EVERYONE, frames, stage.number, done)
            self.progress.steps += 1 + self._config.first_order.replay_steps
            self.progress.frames_seen += frames + replayed
        for vehicle, known in losses.items():
            if known:
                mean = float(np.average([loss for loss, _ in known], weights=[n for _, n in known]))
                self.progress.loss[vehicle] = mean
                log.event("learned", stage=stage.number, vehicle=vehicle, losses=[round(mean, 5)])
                log.scalar(f"loss/{vehicle}", mean, stage.number)

    def _in_turns(self, stage: Stage) -> Iterator[tuple[str, Features]]:
        """As if all had uploaded at the same pace, whatever the order of arrival."""
        columns = [
            [(vehicle, batches[step]) for step in sorted(batches)]
            for vehicle in stage.vehicles
            if (batches := self._smashed.get(vehicle))
        ]
        for row in zip_longest(*columns):
            yield from (entry for entry in row if entry is not None)

    def _steps_of_run(self) -> int:
        """That the whole run takes, those of replay among them."""
        first, plan = self._config.first_order, self._plan
        uploads = sum(
            len(uploaded_batches(first.epochs * batch_count(frames, first.batch_size), plan.upload_every))
            for frames in self._context.train_frames.values()
        )
        return max(1, self._config.rounds * uploads * (1 + first.replay_steps))


class FslSage(CseFsl):
    """The same with heads that are fitted to the cloud's gradients, and learn from nothing else."""

    @property
    def _plan(self) -> FslSagePlan:
        return self._config.way(FslSagePlan)

    def _learner(self, stage: Stage) -> FslSagePlan:
        plan = self._plan
        aligns = stage.round > 1 and (stage.round - 2) % plan.align_every == 0
        return msgspec.structs.replace(
            plan,
            align_batches=plan.align_batches if aligns else 0,
            first_by_labels=plan.first_by_labels and stage.round == 1,
        )

    def gradient(self, vehicle: str, batch: Features) -> tuple[float, NDArray[np.float32]]:
        weights = self._context.class_weights
        if weights is not None:  # those of its own frames: what others have sent so far depends on their pace
            self._trainer.weigh_classes(partial(weights, (vehicle,)))
        try:
            return self._trainer.evaluate_gradient(
                batch.features_BCHW, self._context.labels_of(vehicle, batch)
            )
        finally:
            if weights is not None:
                self._trainer.weigh_classes(partial(weights, self._config.vehicles))
