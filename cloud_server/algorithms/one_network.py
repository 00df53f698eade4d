"""What algorithms of one cloud network share: its state, its validation, and each vehicle's best weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from cloud_server.algorithms.base import (
    Context,
    Scores,
    TrainingProgress,
    evaluation_splits,
)
from cloud_server.algorithms.present_frames import PresentFrames
from cloud_server.algorithms.quarantine import Quarantine
from cloud_server.algorithms.replay import Replay
from cloud_server.algorithms.scoring import evaluate_test_frames, validation_miou
from cloud_server.algorithms.shared_encoder import SharedEncoder
from cloud_server.algorithms.shared_steps import SharedSteps
from cloud_server.desk.turns import Features
from cloud_server.schedule import Stage
from cloud_server.storage.checkpoint import flatten_state, unflatten_state
from cloud_server.storage.vehicle_store import VehicleStore


class OneNetwork:
    """The network that the trainer holds; `personal`: each vehicle is served by its best weights of it."""

    def __init__(self, context: Context, *, personal: bool, shared: SharedEncoder | SharedSteps) -> None:
        self._context = context
        self._config = context.config
        self._trainer = context.trainer
        self._replay = Replay(context)
        self._present = PresentFrames(context)
        self._quarantine = Quarantine(context)
        self.shared_encoder = shared
        """What vehicles have in common of their encoders."""
        self._best = (
            VehicleStore(context.run_folder / "cloud" / "best", capacity=context.config.store_capacity)
            if personal
            else None
        )
        self.scores = Scores()
        self.progress = TrainingProgress()

    def tensors(self) -> dict[str, torch.Tensor]:
        return {
            **flatten_state(self._trainer.state_dict())[0],
            **self._replay.tensors(),
            **self.shared_encoder.tensors(),
        }

    def meta(self) -> dict[str, Any]:
        return {
            "trainer": flatten_state(self._trainer.state_dict())[1],
            "replay": self._replay.meta(),
            "scores": self.scores.to_dict(),
            "progress": self.progress.to_dict(),
            "best": self._best.references() if self._best else {},
            "sharing": self.shared_encoder.meta(),
            "present": self._present.meta(),
            "agreement": self._quarantine.meta(),
        }

    def restore(self, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        self._trainer.load_state_dict(unflatten_state(tensors, meta["trainer"]))
        self._replay.restore(tensors, meta["replay"])
        self.shared_encoder.restore(tensors, meta.get("sharing", {}))
        self._present.restore(meta.get("present", {}))
        self._quarantine.restore(meta.get("agreement", {}))
        self.scores = Scores.from_dict(meta["scores"], self._context.label_space)
        self.progress = TrainingProgress.from_dict(meta["progress"])
        if self._best:
            self._best.restore(meta["best"])

    def stage_kept(self) -> None:
        """See `MayWaitForCommit`: a turn changes nothing before its end."""

    def committed(self) -> None:
        if self._best:
            self._best.prune()
        self._present.committed()

    def _best_weights(self, vehicle: str) -> dict[str, torch.Tensor] | None:
        return self._best.get(vehicle) if self._best else None

    @contextmanager
    def serving(self, vehicle: str) -> Iterator[None]:
        with self._trainer.borrowed_weights(self._best_weights(vehicle)), self._present.network(vehicle):
            yield

    def took_back(self, stage: Stage, vehicle: str) -> bool:
        return self._present.took_back(stage, vehicle)

    def _evaluate(self, stage: Stage, vehicle: str, uploads: Mapping[str, Features]) -> None:
        """Score a vehicle's uploads of an evaluation stage with the weights that serve it."""
        splits = evaluation_splits(self._context, stage, vehicle)
        evaluated = {split: uploads[split] for split in splits if split in uploads}
        with self.serving(vehicle):
            evaluate_test_frames(self._context, self.scores, stage, vehicle, evaluated, self._trainer.predict)
        self._present.take(stage, vehicle, uploads, self.progress)
        if "val" in uploads:  # what a first turn that does not count goes back to
            self.progress.val_miou[vehicle] = self._val_miou(vehicle, uploads["val"])

    def _validate(self, stage: Stage, vehicle: str, val: Features) -> None:
        """Score the latest weights on the validation frames; keep the better of them and the best so far.

        The best so far is scored again, because the encoder has moved on since it was kept.
        """
        latest = self._val_miou(vehicle, val, shown=stage)
        best = latest
        if self._best:
            kept = self._best.get(vehicle)
            with self._trainer.borrowed_weights(kept):
                kept_miou = -math.inf if kept is None else self._val_miou(vehicle, val)
            if latest >= kept_miou:
                self._best.put(vehicle, self._trainer.weights(), score=latest, turn_id=stage.number)
            best = max(latest, kept_miou)
        self.progress.val_miou[vehicle] = best
        log = self._context.events
        log.event(
            "validation", stage=stage.number, round=stage.round, vehicle=vehicle, miou=latest, best=best
        )
        log.scalar(f"val_miou/{vehicle}", latest, stage.number)
        log.scalar(f"best_val_miou/{vehicle}", best, stage.number)

    def _val_miou(self, vehicle: str, val: Features, *, shown: Stage | None = None) -> float:
        with self._present.network(vehicle):
            return validation_miou(self._context, vehicle, val, self._trainer.predict, shown=shown)
