"""`centralized`: all frames in one place, encoder and network trained as one by AdamW, without a fleet.

What pooling every vehicle's frames would give. Budget, rate schedule, loss, batch size, initial weights and
evaluation are those of the other algorithms; the features are not quantised, and there is one model for all,
with the encoder of the scenario's `encoder.name`.
Legend: B frames, C channels, H W rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cloud_server.algorithms.base import PREDICTED, Scores, TrainingProgress
from cloud_server.algorithms.scoring import note_score
from cloud_server.desk.declaration import Declaration
from cloud_server.desk.registry import Registry
from cloud_server.errors import CloudError
from cloud_server.events import Events
from cloud_server.run.persistence import RunState
from cloud_server.run.stages import StageLoop
from cloud_server.schedule import Kind, Stage, all_together
from cloud_server.storage.checkpoint import flatten_state, unflatten_state
from cloud_server.storage.recorders import Board, RunLog
from cloud_server.training.trainer import DivergedError
from datasets.augment import draw_view, view_seed
from datasets.class_weights import balanced_weights, count_classes, table_weights
from datasets.label_files import count_origins, origin
from edge_client.frames import FrameCache, Sight
from evaluation.latest import FRAMES_A_VEHICLE, LatestFrames, evenly
from evaluation.predictions import write_prediction
from evaluation.scores import ConfusionMatrix
from fleet.errors import OperatorError
from fleet.frames.allocation import sights
from fleet.run.job import Job
from fleet.run.joint_network import joint_trainer
from fleet.show.progress import Progress
from protocol.batches import batch_bounds
from protocol.noise import derive_seed, permutation
from protocol.plans.class_weights import NONE


def run_centralized(job: Job) -> None:
    """Train and evaluate; what is in the run folder is gone on with.

    Raises:
        OperatorError: the network can't be built, training diverges, or the checkpoint doesn't fit.
        DatasetError, OSError: a frame can't be read, or the folder can't be written.
    """
    try:
        with (
            RunLog(job.run_folder) as run_log,
            Board(job.run_folder) as board,
            Progress(job.scenario, job.console) as view,
        ):
            _run(job, Events(run_log, board, view))
    except (CloudError, DivergedError) as error:
        raise OperatorError(str(error)) from error


def _run(job: Job, events: Events) -> None:
    config = job.scenario.cloud_config()
    learning = _CentralLearning(job, events)
    loop = StageLoop(
        config,
        learning,
        registry=_registry(job),
        state=RunState(job.run_folder / "cloud", config, resume=True),
        label_space=job.source.label_space,
        run_folder=job.run_folder,
        events=events,
    )
    loop.resume()
    loop.run(learning.do_stage)
    loop.conclude()


class _CentralLearning:
    """Stage 0 evaluates the start, stages 1 to R train E epochs each, stage R + 1 evaluates."""

    def __init__(self, job: Job, events: Events) -> None:
        self._job = job
        self._shares = job.shares
        self._config = job.scenario.cloud_config()
        self._events = events
        self._label_space = job.source.label_space
        self._latest = LatestFrames(job.run_folder, self._config.vehicles, self._config.label_space)
        self._cache = FrameCache(job.source, job.scenario.frame_size)
        self._sights = {key: sight.sight() for key, sight in sights(job.shares).items()}
        self._train_frames = [
            (vehicle, index, key)
            for vehicle, share in self._shares.items()
            for index, key in enumerate(share.train)
        ]
        """Each with its vehicle and its number there."""
        self._bounds = batch_bounds(len(self._train_frames), self._config.first_order.batch_size)
        self._trainer = joint_trainer(
            job, steps=len(self._bounds) * self._config.first_order.passes * self._config.rounds
        )
        class_weights = self._class_weights()
        if class_weights is not None:
            self._trainer.weigh_classes(lambda: class_weights)
        self.stages = all_together(self._config.vehicles, self._config.rounds)
        self.scores = Scores()
        self.progress = TrainingProgress()

    def do_stage(self, stage: Stage) -> None:
        """All of a stage's work, in this process."""
        if stage.kind is Kind.TRAIN:
            self._train(stage)
            self._validate(stage)
        else:
            self._evaluate(stage)

    # What a checkpoint holds

    def tensors(self) -> dict[str, Tensor]:
        return flatten_state(self._trainer.state_dict())[0]

    def meta(self) -> dict[str, Any]:
        return {
            "trainer": flatten_state(self._trainer.state_dict())[1],
            "scores": self.scores.to_dict(),
            "progress": self.progress.to_dict(),
        }

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        self._trainer.load_state_dict(unflatten_state(tensors, meta["trainer"]))
        self.scores = Scores.from_dict(meta["scores"], self._label_space)
        self.progress = TrainingProgress.from_dict(meta["progress"])

    def committed(self) -> None:
        pass  # everything is in the checkpoint

    # The stages

    def _train(self, stage: Stage) -> None:
        """Passes over the union of all train frames, in an order drawn anew for each; those that stand for
        replay follow the others. Augmentation draws what a frame's vehicle would have drawn in its turn."""
        passes, n = self._config.first_order.passes, len(self._train_frames)
        seeds = {v: derive_seed(self._config.seed, "turn", stage.number, v) for v in self._shares}
        total = passes * len(self._bounds)
        losses = []
        for epoch in range(passes):
            order_n = permutation(derive_seed(self._config.seed, "centralized", stage.number, epoch), n)
            summed = 0.0
            for step, (start, stop) in enumerate(self._bounds):
                frames = [self._train_frames[position] for position in order_n[start:stop]]
                loss = self._trainer.train_step(
                    *self._batch([(key, view_seed(seeds[v], epoch, index)) for v, index, key in frames])
                )
                summed += loss * len(frames)
                done = epoch * len(self._bounds) + step + 1
                if done % max(1, total // 10) == 0:
                    for vehicle in self._shares:
                        self._events.event(
                            "learning", stage=stage.number, vehicle=vehicle, done=done, total=total, loss=loss
                        )
            losses.append(summed / n)
        self.progress.frames_seen += passes * n
        self.progress.steps += total
        if losses:
            self.progress.loss = dict.fromkeys(self._shares, losses[-1])
            self._events.event("learned", stage=stage.number, losses=[round(loss, 5) for loss in losses])
            self._events.scalar("loss", losses[-1], stage.number)

    def _validate(self, stage: Stage) -> None:
        for vehicle, share in self._shares.items():
            matrix = ConfusionMatrix(self._label_space)
            few, shown = evenly(len(share.val), FRAMES_A_VEHICLE), []
            for place, key in enumerate(share.val):
                label_HW = self._cache.resized(key, self._sights.get(key))[1]
                prediction_HW = self._predict(key, label_HW, self._sights.get(key))
                matrix.add(label_HW, prediction_HW)
                if place in few:
                    shown.append((key, label_HW, prediction_HW))
            self._latest.keep_predictions(vehicle, stage.number, "val", shown)
            miou = matrix.mean_iou()
            miou = miou if math.isfinite(miou) else 0.0
            self.progress.val_miou[vehicle] = miou
            self._events.event(
                "validation", stage=stage.number, round=stage.round, vehicle=vehicle, miou=miou, best=miou
            )
            self._events.scalar(f"val_miou/{vehicle}", miou, stage.number)

    def _evaluate(self, stage: Stage) -> None:
        """Local test frames, and at the end, from the same predictions, those of other vehicles."""
        by_key: dict[str, ConfusionMatrix] = {}
        for vehicle, share in self._shares.items():
            for key in share.test:
                label_HW = self._cache.full_label(key)
                prediction_HW = self._predict(key, label_HW, self._sights.get(key))
                by_key[key] = ConfusionMatrix(self._label_space)
                by_key[key].add(label_HW, prediction_HW)
                if stage.kind is Kind.FINAL:
                    self._write("test", vehicle, key, prediction_HW)
        for vehicle, share in self._shares.items():
            self._sum(by_key, share.test, stage, vehicle, "test")
            if stage.kind is Kind.FINAL:
                self._sum(by_key, share.ood, stage, vehicle, "ood")
        self._evaluate_source(stage)
        if stage.kind is Kind.FINAL:
            self._evaluate_fleet(stage)

    def _evaluate_fleet(self, stage: Stage) -> None:
        """The test split, seen clearly, once for all: there is one model."""
        for vehicle, share in self._shares.items():
            if not share.fleet:
                continue
            matrix = ConfusionMatrix(self._label_space)
            for key in share.fleet:
                label_HW = self._cache.full_label(key)
                prediction_HW = self._predict(key, label_HW, None)
                matrix.add(label_HW, prediction_HW)
                self._write("fleet", vehicle, key, prediction_HW)
            frames = len(share.fleet)
            note_score(self.scores, self._events, stage, vehicle, "fleet", matrix, frames=frames)

    def _write(self, split: str, vehicle: str, key: str, prediction_HW: NDArray[np.uint8]) -> None:
        folder = self._job.run_folder / PREDICTED[split] / vehicle
        write_prediction(folder, key, prediction_HW, self._label_space)

    def _evaluate_source(self, stage: Stage) -> None:
        """Frames of the source, seen clearly: the same, with the same model, for every vehicle."""
        matrix = ConfusionMatrix(self._label_space)
        keys = next(iter(self._shares.values())).source
        for key in keys:
            label_HW = self._cache.full_label(key)
            matrix.add(label_HW, self._predict(key, label_HW, None))
        for vehicle in self._shares if keys else ():
            note_score(self.scores, self._events, stage, vehicle, "source", matrix, frames=len(keys))

    def _sum(
        self,
        by_key: Mapping[str, ConfusionMatrix],
        keys: Sequence[str],
        stage: Stage,
        vehicle: str,
        split: str,
    ) -> None:
        matrix = ConfusionMatrix(self._label_space)
        for key in keys:
            matrix.merge(by_key[key])
        note_score(self.scores, self._events, stage, vehicle, split, matrix, frames=len(keys))

    # Frames and network

    def _batch(self, frames: Iterable[tuple[str, int]]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """image_BCHW and label_BHW at the encoder's input size, of keys with the seeds of their views."""
        pairs = [self._seen(key, seed) for key, seed in frames]
        image_BHWC = np.stack([image_HWC for image_HWC, _ in pairs])
        return image_BHWC.transpose(0, 3, 1, 2), np.stack([label_HW for _, label_HW in pairs])

    def _class_weights(self) -> NDArray[np.float32] | None:
        """Balanced ones are of all train labels, at the encoder's input size."""
        weights = self._config.class_weights
        if weights == NONE:
            return None
        if not isinstance(weights, str):
            return table_weights(weights, self._label_space)
        labels = (self._cache.resized(key, self._sights.get(key))[1] for _, _, key in self._train_frames)
        classes = self._label_space.num_classes
        return balanced_weights(np.sum([count_classes(label_HW, classes) for label_HW in labels], axis=0))

    def _seen(self, key: str, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        image_HWC, label_HW = self._cache.resized(key, self._sights.get(key))
        if not self._config.augmentation.is_on:
            return image_HWC, label_HW
        view = draw_view(self._config.augmentation, self._cache.image_size, seed)
        return view.image(image_HWC), view.label(label_HW)

    def _predict(self, key: str, label_HW: NDArray[np.uint8], sight: Sight | None) -> NDArray[np.uint8]:
        """prediction_HW of a frame as it is seen, uint8 trainIds at the size of its label."""
        height, width = label_HW.shape
        image_HWC, _ = self._cache.resized(key, sight)
        image_BCHW = image_HWC.transpose(2, 0, 1)[None]
        prediction_HW: NDArray[np.uint8] = self._trainer.predict(image_BCHW, (height, width))[0]
        return prediction_HW


def _registry(job: Job) -> Registry:
    """The fleet's records: each vehicle's frames are known, nothing was sent."""
    scenario = job.scenario
    config = scenario.cloud_config()
    refs = {ref.key: ref for ref in job.source.refs}
    registry = Registry(config.vehicles, label_space=job.source.label_space.name, feature_shapes=None)
    for vehicle, share in job.shares.items():
        registry.vehicles[vehicle].declared = Declaration(
            encoder=scenario.encoder.name,
            bundle_digest="",
            feature_shape=(0, 0, 0),
            image_size=scenario.frame_size,
            frames={split: len(keys) for split, keys in share.splits().items()},
            frames_digest="",
            subspace=scenario.architecture(scenario.encoder.name).subspace,
            labels={
                split: count_origins(origin(refs[key].label_path) for key in keys)
                for split, keys in share.splits().items()
            },
        )
    return registry
