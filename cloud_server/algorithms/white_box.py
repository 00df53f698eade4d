"""Learning with gradients on both sides of the split: what `split`, `individual` and SplitFed share.

A vehicle sends the features of a batch, the cloud takes one first-order step on them and answers with the
gradient at the features. Whose network learns is behind `Networks`.
Legend: B frames, C channels, H W feature rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch

from cloud_server.algorithms.base import (
    Context,
    Scores,
    TrainingProgress,
    TurnPlan,
    evaluation_plan,
    evaluation_splits,
    training_steps,
    upload_limits,
)
from cloud_server.algorithms.present_frames import PresentFrames
from cloud_server.algorithms.quarantine import Quarantine
from cloud_server.algorithms.replay import Replay
from cloud_server.algorithms.scoring import evaluate_test_frames, validation_miou
from cloud_server.algorithms.shared_encoder import SharedEncoder
from cloud_server.desk.handlers.gradients import StepResult
from cloud_server.desk.turns import Features
from cloud_server.schedule import Kind, Stage
from protocol.messages import WhiteBoxPlan

_LIVE_LINES_A_TURN = 10


class Networks(Protocol):
    """The networks that learn, and the one trainer that holds one of them at a time."""

    def begin(self, vehicle: str) -> None:
        """A turn starts, perhaps over again: back to the vehicle's network as stages before left it."""

    def learn(self, vehicle: str) -> None:
        """Let the trainer hold the network that learns in the vehicle's turn, as far as the turn has come."""

    def serving(self, vehicle: str) -> AbstractContextManager[None]:
        """Let the trainer predict, in the body, with the weights that serve the vehicle."""

    def keep(self, vehicle: str, turn_id: int, score: float) -> None:
        """The turn is over: what its training made of the network, which the trainer holds, is to be kept.

        `score` is its mIoU on the vehicle's validation frames.
        """

    def tensors(self) -> dict[str, torch.Tensor]:
        """See `Algorithm.tensors`."""

    def meta(self) -> dict[str, Any]:
        """See `Algorithm.meta`."""

    def restore(self, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        """See `Algorithm.restore`."""

    def stage_kept(self) -> None:
        """See `MayWaitForCommit`: what `begin` goes back to."""

    def committed(self) -> None:
        """See `Algorithm.committed`."""


class WhiteBox:
    """White-box split learning in the order of `stages`."""

    def __init__(
        self,
        context: Context,
        *,
        networks: Networks,
        replay: Replay,
        stages: tuple[Stage, ...],
        shared: SharedEncoder | None = None,
    ) -> None:
        """`shared`: None = as the run says."""
        self._context = context
        self.shared_encoder = SharedEncoder(context, averages=False) if shared is None else shared
        self._config = context.config
        self._trainer = context.trainer
        self._networks = networks
        self._replay = replay
        self._present = PresentFrames(context)
        self._quarantine = Quarantine(context)
        self._losses: dict[str, list[tuple[float, int]]] = {}
        """By vehicle: (loss, frames) of each step of its turn that it took part in."""
        self._replayed_frames: dict[str, int] = {}
        """By vehicle: frames of the other steps of its turn."""
        self._stage_number = 0
        self.stages = stages
        self.scores = Scores()
        self.progress = TrainingProgress()

    def plan(self, stage: Stage, vehicle: str) -> TurnPlan:
        first = self._config.first_order
        if stage.kind is not Kind.TRAIN:
            plan = evaluation_plan(self._context, stage, vehicle, first.batch_size)
            uploads = plan.uploads + self._present.uploads(stage)
            return replace(plan, uploads=uploads, sharing=self.shared_encoder.turn(stage))
        return TurnPlan(
            learner=self._config.way(WhiteBoxPlan),
            epochs=first.epochs,
            batches=0,
            batch_size=first.batch_size,
            uploads=(*self._present.uploads(stage), "val"),
            limits=upload_limits(self._config, stage),
            sharing=self.shared_encoder.turn(stage),
        )

    def begin(self, stage: Stage, vehicle: str) -> None:
        self._stage_number = stage.number
        self._losses[vehicle] = []
        self._replayed_frames[vehicle] = 0
        self._networks.begin(vehicle)
        self._replay.begin(vehicle)
        self.shared_encoder.begin(vehicle)

    def train_step(self, vehicle: str, batch: Features) -> StepResult:
        indices, features_BCHW = batch.indices, batch.features_BCHW
        self._networks.learn(vehicle)
        rate_share = self._trainer.rate_share
        if not self._losses[vehicle]:
            self._quarantine.look(vehicle, batch)
        else:
            self._quarantine.look_on(vehicle, batch)
        if self._config.network.learns:
            loss, gradient_BCHW = self._trainer.train_step_with_gradient(
                features_BCHW, self._context.labels_of(vehicle, batch)
            )
        else:
            follows_labels = self._config.adaptation.objective == "labels"
            targets_BHW = (
                self._context.labels_of(vehicle, batch)
                if follows_labels
                else self._present.targets(vehicle, indices)
            )
            with self._present.network(vehicle):
                loss, gradient_BCHW = self._trainer.evaluate_gradient(features_BCHW, targets_BHW)
            self._trainer.advance_schedule()
        losses = self._losses[vehicle]
        losses.append((loss, len(indices)))
        self._replay.keep(vehicle, batch)
        moment = (self._stage_number, vehicle, len(losses))
        self._replayed_frames[vehicle] += self._replay.follow_up(vehicle, len(indices), *moment)
        steps = 1 + self._config.first_order.replay_steps
        done, total = len(losses) * steps, self._steps_of_turn(vehicle)
        if len(losses) % max(1, total // steps // _LIVE_LINES_A_TURN) == 0:
            self._context.events.event(
                "learning", stage=self._stage_number, vehicle=vehicle, done=done, total=total, loss=loss
            )
        return StepResult(loss=loss, rate_share=rate_share, gradient_BCHW=gradient_BCHW)

    def turn_done(self, stage: Stage, vehicle: str, uploads: Mapping[str, Features]) -> None:
        if stage.kind is Kind.TRAIN:
            self.progress.leave_out(self.shared_encoder.hand_on(stage, vehicle))
            self._networks.learn(vehicle)
            self._note_losses(stage, vehicle)
            if not self._quarantine.counts(stage, vehicle, self.progress):
                self._go_back(vehicle)
            counts = self._present.take(stage, vehicle, uploads, self.progress)
            score = self._validate(stage, vehicle, uploads["val"]) if counts else 0.0
            self._networks.keep(vehicle, stage.number, score)
            return
        splits = evaluation_splits(self._context, stage, vehicle)
        evaluated = {split: uploads[split] for split in splits if split in uploads}
        with self.serving(vehicle):
            evaluate_test_frames(self._context, self.scores, stage, vehicle, evaluated, self._trainer.predict)
        with self._networks.serving(vehicle):
            self._present.take(stage, vehicle, uploads, self.progress)
            if "val" in uploads:  # what a first turn that does not count goes back to
                self.progress.val_miou[vehicle] = self._val_miou(vehicle, uploads["val"])

    def _go_back(self, vehicle: str) -> None:
        """Let the vehicle's turn have changed nothing in the cloud but the schedule of rates."""
        steps = self._trainer.steps
        self._networks.begin(vehicle)
        self._networks.learn(vehicle)
        self._trainer.advance_schedule(steps - self._trainer.steps)
        self._replay.begin(vehicle)

    def took_back(self, stage: Stage, vehicle: str) -> bool:
        return self._present.took_back(stage, vehicle)

    @contextmanager
    def serving(self, vehicle: str) -> Iterator[None]:
        with self._networks.serving(vehicle), self._present.network(vehicle):
            yield

    def stage_done(self, stage: Stage) -> None:
        pass  # every turn was worked in as it ended

    def tensors(self) -> dict[str, torch.Tensor]:
        return {**self._networks.tensors(), **self._replay.tensors(), **self.shared_encoder.tensors()}

    def meta(self) -> dict[str, Any]:
        return {
            **self._networks.meta(),
            "replay": self._replay.meta(),
            "scores": self.scores.to_dict(),
            "progress": self.progress.to_dict(),
            "sharing": self.shared_encoder.meta(),
            "present": self._present.meta(),
            "agreement": self._quarantine.meta(),
        }

    def restore(self, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        self._networks.restore(tensors, meta)
        self._replay.restore(tensors, meta["replay"])
        self.shared_encoder.restore(tensors, meta.get("sharing", {}))
        self._present.restore(meta.get("present", {}))
        self._quarantine.restore(meta.get("agreement", {}))
        self.scores = Scores.from_dict(meta["scores"], self._context.label_space)
        self.progress = TrainingProgress.from_dict(meta["progress"])

    def stage_kept(self) -> None:
        self._networks.stage_kept()
        self._replay.stage_kept()

    def committed(self) -> None:
        self._networks.committed()
        self._present.committed()

    def _steps_of_turn(self, vehicle: str) -> int:
        return training_steps(self._config, self._context.train_frames[vehicle]) // self._config.rounds

    def _note_losses(self, stage: Stage, vehicle: str) -> None:
        """Each pass's mean loss over its frames."""
        steps = self._losses[vehicle]
        if not steps:
            return
        passes = np.array(steps).reshape(self._config.first_order.epochs, -1, 2)
        means = [float(np.average(part[:, 0], weights=part[:, 1])) for part in passes]
        if self._config.network.learns:
            self.progress.steps += len(steps) * (1 + self._config.first_order.replay_steps)
        self.progress.frames_seen += sum(frames for _, frames in steps) + self._replayed_frames[vehicle]
        self.progress.loss[vehicle] = means[-1]
        log = self._context.events
        log.event("learned", stage=stage.number, vehicle=vehicle, losses=[round(mean, 5) for mean in means])
        log.scalar(f"loss/{vehicle}", means[-1], stage.number)

    def _validate(self, stage: Stage, vehicle: str, val: Features) -> float:
        """The mIoU on a vehicle's validation frames of the weights that the trainer holds."""
        score = self._val_miou(vehicle, val, shown=stage)
        self.progress.val_miou[vehicle] = score
        log = self._context.events
        log.event(
            "validation", stage=stage.number, round=stage.round, vehicle=vehicle, miou=score, best=score
        )
        log.scalar(f"val_miou/{vehicle}", score, stage.number)
        return score

    def _val_miou(self, vehicle: str, val: Features, *, shown: Stage | None = None) -> float:
        with self._present.network(vehicle):
            return validation_miou(self._context, vehicle, val, self._trainer.predict, shown=shown)
