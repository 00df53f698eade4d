"""BlackFed v1 and v2 (arXiv 2410.24181): losses out, features in, one vehicle's turn after the other.

v1 has one cloud network. v2 also keeps each vehicle's best weights, by the mIoU on its validation frames, and
uses them for that vehicle's inference and, as an option, for its feedback; training goes on from the latest
weights as in v1. Legend: B frames, C channels, H W feature rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloud_server.algorithms.base import Context, TurnPlan, evaluation_plan, training_steps, upload_limits
from cloud_server.algorithms.one_network import OneNetwork
from cloud_server.algorithms.participation import turns_of_learning
from cloud_server.algorithms.shared_encoder import SharedEncoder
from cloud_server.algorithms.shared_steps import SharedSteps
from cloud_server.desk.handlers.feedback import Judge
from cloud_server.desk.turns import Features
from cloud_server.schedule import Kind, Stage, round_robin
from evaluation.latest import FRAMES_A_VEHICLE, evenly
from protocol.batches import batch_bounds, batch_count
from protocol.noise import derive_seed
from protocol.plans.checks import Plan
from protocol.plans.sharing import Sharing
from protocol.rates import SCHEDULES


class BlackFed(OneNetwork):
    """Round-robin black-box split learning; `personal` makes it v2, frozen encoders the lower bound."""

    def __init__(self, context: Context, *, personal: bool, frozen_encoders: bool = False) -> None:
        super().__init__(context, personal=personal, shared=_shared(context))
        self._frozen_encoders = frozen_encoders
        self._unshown: dict[str, int] = {}
        """By vehicle: the stage of a turn none of whose loss maps have been kept for whoever looks on."""
        self.stages = round_robin(self._config.vehicles, self._config.rounds)
        most = self._config.uploads.train_frames
        if most is not None:
            rounds, turns = self._config.rounds, turns_of_learning(self._config)
            uploaded = {name: min(most, frames) for name, frames in context.train_frames.items()}
            steps = (
                training_steps(self._config, uploaded[name]) * turns[name] // rounds for name in uploaded
            )
            self._trainer.span_schedule(max(1, sum(steps)))

    def plan(self, stage: Stage, vehicle: str) -> TurnPlan:
        zeroth = self._config.zeroth_order
        if stage.kind is not Kind.TRAIN:
            plan = evaluation_plan(self._context, stage, vehicle, zeroth.batch_size)
            uploads = plan.uploads + self._present.uploads(stage)
            return replace(plan, uploads=uploads, sharing=self.shared_encoder.turn(stage))
        return TurnPlan(
            learner=None if self._frozen_encoders else self._estimator(stage.round),
            epochs=zeroth.epochs,
            batches=zeroth.batches,
            batch_size=zeroth.batch_size,
            uploads=(
                *(("train",) if self._config.network.learns else self._present.uploads(stage)),
                "val",
            ),
            limits=upload_limits(self._config, stage),
            sharing=self.shared_encoder.turn(stage),
        )

    def _estimator(self, round_number: int) -> Plan:
        """With the round's share of its rate, that of the schedule at the round's middle."""
        plan, schedule = self._config.estimator, self._config.zeroth_order.schedule
        if schedule == "constant":
            return plan
        share = SCHEDULES[schedule](2 * round_number - 1, 2 * self._config.rounds + 1)
        rate: float = getattr(plan, "rate")  # noqa: B009 - `check_combination` has refused plans without
        return msgspec.structs.replace(plan, rate=share * rate)

    def begin(self, stage: Stage, vehicle: str) -> None:
        self.shared_encoder.begin(vehicle)  # queries change nothing
        self._unshown[vehicle] = stage.number

    @contextmanager
    def feedback(self, vehicle: str, indices: tuple[int, ...]) -> Iterator[Judge]:
        label_BHW = self._present.targets(vehicle, indices)
        with self._feedback_weights(vehicle), self._present.network(vehicle):
            yield Judge(self._trainer, label_BHW, note=partial(self._show_loss_maps, vehicle, indices))

    def _show_loss_maps(self, vehicle: str, indices: tuple[int, ...], maps_Byx: NDArray[np.float32]) -> None:
        """Keep the first ones of a turn for whoever looks on."""
        stage = self._unshown.pop(vehicle, None)
        if stage is None:
            return
        labels = self._context.labels
        few = [
            place for place in evenly(len(indices), FRAMES_A_VEHICLE) if labels.has(vehicle, indices[place])
        ]
        if few:
            self._context.latest.keep_loss_maps(
                vehicle, stage, ((*labels.full(vehicle, indices[place]), maps_Byx[place]) for place in few)
            )

    def turn_done(self, stage: Stage, vehicle: str, uploads: Mapping[str, Features]) -> None:
        if stage.kind is Kind.TRAIN:
            self.progress.leave_out(self.shared_encoder.hand_on(stage, vehicle))
            if self._config.network.learns:
                self._quarantine.look(vehicle, uploads["train"])
                if self._quarantine.counts(stage, vehicle, self.progress):
                    self._learn(stage, vehicle, uploads["train"])
                else:
                    self._pass_over(vehicle, uploads["train"])
            if self._present.take(stage, vehicle, uploads, self.progress):
                self._validate(stage, vehicle, uploads["val"])
        else:
            self._evaluate(stage, vehicle, uploads)

    def stage_done(self, stage: Stage) -> None:
        pass  # every turn was worked in as it ended

    def _feedback_weights(self, vehicle: str) -> AbstractContextManager[None]:
        own = self._config.feedback_network == "best"
        return self._trainer.borrowed_weights(self._best_weights(vehicle) if own else None)

    def _pass_over(self, vehicle: str, train: Features) -> None:
        """Learn nothing from a turn; the rates are those of the run's schedule all the same."""
        first = self._config.first_order
        self._trainer.advance_schedule(first.passes * batch_count(len(train.indices), first.batch_size))
        self._replay.forget(vehicle)

    def _learn(self, stage: Stage, vehicle: str, train: Features) -> None:
        """First-order epochs over the features that were uploaded once, each step followed by replay."""
        first = self._config.first_order
        if first.epochs == 0:
            return
        log = self._context.events
        self._replay.keep(vehicle, train)
        bounds = batch_bounds(len(train.indices), first.batch_size)
        replayed_frames = 0

        def progress(done: int, total: int, loss: float) -> None:
            nonlocal replayed_frames
            self._context.check_stop()
            start, stop = bounds[(done - 1) % len(bounds)]
            replayed_frames += self._replay.follow_up(vehicle, stop - start, stage.number, done)
            if done % max(1, total // 10) == 0:
                steps = 1 + first.replay_steps
                log.event(
                    "learning",
                    stage=stage.number,
                    vehicle=vehicle,
                    done=done * steps,
                    total=total * steps,
                    loss=loss,
                )

        losses = self._trainer.train_epochs(
            train.features_BCHW,
            self._context.labels_of(vehicle, train),
            epochs=first.epochs,
            batch_size=first.batch_size,
            seed=derive_seed(self._config.seed, "first-order", stage.number),
            progress=progress,
            visited=lambda epoch, positions: self._context.ledger.visit(
                epoch, vehicle, (train.indices[position] for position in positions)
            ),
        )
        self.progress.steps += first.passes * len(bounds)
        self.progress.frames_seen += first.epochs * len(train.indices) + replayed_frames
        self.progress.loss[vehicle] = losses[-1]
        log.event("learned", stage=stage.number, vehicle=vehicle, losses=[round(loss, 5) for loss in losses])
        log.scalar(f"loss/{vehicle}", losses[-1], stage.number)


def _shared(context: Context) -> SharedEncoder | SharedSteps:
    if context.config.way(Sharing).encoder == "seeds":
        return SharedSteps(context)
    return SharedEncoder(context, averages=False)
