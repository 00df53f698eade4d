"""`centralized`: all frames in one place, encoder and network trained as one by AdamW, without a fleet.

What pooling every vehicle's frames would give. Budget, rate schedule, loss, batch size, initial weights and
evaluation are those of the other algorithms; the features are not quantised, and there is one model for all,
with the encoder of the scenario's `encoder.name`.
Legend: B frames, C channels, H W rows and columns, K classes, h w logit rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from cloud_server.algorithms.base import Scores, TrainingProgress
from cloud_server.config import network_seed
from cloud_server.desk.registry import Registry
from cloud_server.errors import CloudError
from cloud_server.networks.build import build_network
from cloud_server.schedule import Kind
from cloud_server.storage.checkpoint import flatten_state, unflatten_state
from cloud_server.storage.persistence import RunState
from cloud_server.storage.results import RESULT_NAME, assemble
from cloud_server.storage.run_log import RunLog
from cloud_server.training.trainer import DivergedError, PartConfig, Trainer, TrainerConfig
from edge_client.frames import FrameCache, Sight
from evaluation.predictions import write_prediction
from evaluation.scores import ConfusionMatrix
from fleet.errors import OperatorError
from fleet.export.encoders import build_encoder
from fleet.run.allocation import sights
from fleet.run.job import Job
from fleet.run.progress import Progress
from fleet.scenario import parse_image_size
from protocol.atomic import write_json_atomic
from protocol.batches import batch_bounds
from protocol.messages import PROTOCOL_VERSION, Hello
from protocol.noise import derive_seed, permutation


class JointNetwork(nn.Module):
    """Encoder and cloud network, trained in one place: image_BCHW, RGB 0 to 255, to logits_BKhw."""

    def __init__(self, encoder: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.network = network

    def forward(self, image_BCHW: Tensor) -> Tensor:
        logits_BKhw: Tensor = self.network(self.encoder(image_BCHW.permute(0, 2, 3, 1)))
        return logits_BKhw


def run_centralized(job: Job) -> None:
    """Train and evaluate; what is in the run folder is gone on with.

    Raises:
        OperatorError: the network can't be built, training diverges, or the checkpoint doesn't fit.
        DatasetError, OSError: a frame can't be read, or the folder can't be written.
    """
    try:
        with RunLog(job.run_folder) as run_log, Progress(job.scenario, job.run_folder, job.console) as view:
            _CentralRun(job, run_log, view).run()
    except (CloudError, DivergedError) as error:
        raise OperatorError(str(error)) from error


class _CentralRun:
    """Stage 0 evaluates the start, stages 1 to R train E epochs each, stage R + 1 evaluates; each is
    committed."""

    def __init__(self, job: Job, run_log: RunLog, view: Progress) -> None:
        self._job = job
        self._shares = job.shares
        self._config = job.scenario.cloud_config()
        self._log = run_log
        self._view = view
        self._label_space = job.source.label_space
        self._cache = FrameCache(job.source, parse_image_size(job.scenario.image_size))
        self._sights = {key: sight.sight() for key, sight in sights(job.shares).items()}
        self._train_keys = [key for share in self._shares.values() for key in share.train]
        self._bounds = batch_bounds(len(self._train_keys), self._config.first_order.batch_size)
        self._trainer = self._build_trainer()
        self.scores = Scores()
        self.progress = TrainingProgress()

    def run(self) -> None:
        config = self._config
        registry = _registry(self._job)
        state = RunState(self._job.run_folder / "cloud", config, resume=True)
        committed = state.load()
        if committed is not None:
            self.restore(committed.tensors, committed.algorithm)
        first, last = committed.next_stage if committed else 0, config.rounds + 1
        self._log.event(
            "run",
            algorithm=config.algorithm,
            stages=last + 1,
            first=first,
            rounds=config.rounds,
            vehicles=list(config.vehicles),
        )
        for stage in range(first, last + 1):
            if 0 < stage < last:
                kind = "train"
                self._train(stage)
                self._validate(stage)
                self._note_curve(stage, state.wall_s())
            else:
                kind = "final" if stage else "initial"
                self._evaluate(stage, kind)
                if stage == 0:
                    spent = {"uplink_bytes": 0, "downlink_bytes": 0, "wall_s": round(state.wall_s(), 3)}
                    self._log.event("training", stage=stage, **spent)
            state.commit(stage + 1, self, registry, {})
            self._log.event("committed", stage=stage, round=stage, kind=kind)
            self._view.update()
        result = assemble(config, self.scores, self.progress, registry, self._label_space, state.wall_s())
        write_json_atomic(self._job.run_folder / RESULT_NAME, result)
        self._log.event("result", mean_local_miou=result["mean_local_miou"])
        self._view.update()

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
        """Become what `tensors` and `meta` were taken from; CloudError where they are of another network."""
        try:
            self._trainer.load_state_dict(unflatten_state(tensors, meta["trainer"]))
        except CloudError as error:
            raise CloudError(f"the checkpoint doesn't fit this run: {error}") from error
        self.scores = Scores.from_dict(meta["scores"])
        self.progress = TrainingProgress.from_dict(meta["progress"])

    # The stages

    def _train(self, stage: int) -> None:
        """Passes over the union of all train frames, in an order drawn anew for each; those that stand for
        replay follow the others."""
        passes, n = self._config.first_order.passes, len(self._train_keys)
        total = passes * len(self._bounds)
        losses = []
        for epoch in range(passes):
            order_n = permutation(derive_seed(self._config.seed, "centralized", stage, epoch), n)
            summed = 0.0
            for step, (start, stop) in enumerate(self._bounds):
                keys = [self._train_keys[index] for index in order_n[start:stop]]
                loss = self._trainer.train_step(*self._batch(keys))
                summed += loss * len(keys)
                done = epoch * len(self._bounds) + step + 1
                if done % max(1, total // 10) == 0:
                    for vehicle in self._shares:
                        self._log.event(
                            "learning", stage=stage, vehicle=vehicle, done=done, total=total, loss=loss
                        )
                    self._view.update()
            losses.append(summed / n)
        self.progress.frames_seen += passes * n
        if losses:
            self.progress.loss = dict.fromkeys(self._shares, losses[-1])
            self._log.event("learned", stage=stage, losses=[round(loss, 5) for loss in losses])
            self._log.scalar("loss", losses[-1], stage)

    def _validate(self, stage: int) -> None:
        for vehicle, share in self._shares.items():
            matrix = ConfusionMatrix(self._label_space)
            for key in share.val:
                label_HW = self._cache.resized(key, self._sights.get(key))[1]
                matrix.add(label_HW, self._predict(key, label_HW, self._sights.get(key)))
            miou = matrix.mean_iou()
            miou = miou if math.isfinite(miou) else 0.0
            self.progress.val_miou[vehicle] = miou
            self._log.event("validation", stage=stage, round=stage, vehicle=vehicle, miou=miou, best=miou)
            self._log.scalar(f"val_miou/{vehicle}", miou, stage)

    def _note_curve(self, stage: int, wall_s: float) -> None:
        self._log.event(
            "curve",
            stage=stage,
            round=stage,
            frames_seen=self.progress.frames_seen,
            loss=self.progress.mean_loss,
            val_miou=self.progress.mean_val_miou,
            validated=len(self.progress.val_miou),
            uplink_bytes=0,
            downlink_bytes=0,
            wall_s=round(wall_s, 3),
        )

    def _evaluate(self, stage: int, kind: str) -> None:
        """Local test frames, and at the end, from the same predictions, those of other vehicles."""
        by_key: dict[str, ConfusionMatrix] = {}
        for vehicle, share in self._shares.items():
            for key in share.test:
                label_HW = self._cache.full_label(key)
                prediction_HW = self._predict(key, label_HW, self._sights.get(key))
                by_key[key] = ConfusionMatrix(self._label_space)
                by_key[key].add(label_HW, prediction_HW)
                if kind == "final":
                    folder = self._job.run_folder / "predictions" / vehicle
                    write_prediction(folder, key, prediction_HW, self._label_space)
        for vehicle, share in self._shares.items():
            if kind == "final":
                self.scores.local[vehicle] = self._sum(by_key, share.test, stage, kind, vehicle, "test")
                self.scores.ood[vehicle] = self._sum(by_key, share.ood, stage, kind, vehicle, "ood")
            else:
                self.scores.initial[vehicle] = self._sum(by_key, share.test, stage, kind, vehicle, "test")
        self._evaluate_source(stage, kind)

    def _evaluate_source(self, stage: int, kind: str) -> None:
        """Frames of the source, seen clearly: the same, with the same model, for every vehicle."""
        matrix = ConfusionMatrix(self._label_space)
        keys = next(iter(self._shares.values())).source
        for key in keys:
            label_HW = self._cache.full_label(key)
            matrix.add(label_HW, self._predict(key, label_HW, None))
        for vehicle in self._shares if keys else ():
            self.scores.of(Kind(kind), "source")[vehicle] = self._logged(
                matrix, len(keys), stage, kind, vehicle, "source"
            )

    def _sum(
        self,
        by_key: Mapping[str, ConfusionMatrix],
        keys: Sequence[str],
        stage: int,
        kind: str,
        vehicle: str,
        split: str,
    ) -> ConfusionMatrix:
        matrix = ConfusionMatrix(self._label_space)
        for key in keys:
            matrix.merge(by_key[key])
        return self._logged(matrix, len(keys), stage, kind, vehicle, split)

    def _logged(
        self, matrix: ConfusionMatrix, frames: int, stage: int, kind: str, vehicle: str, split: str
    ) -> ConfusionMatrix:
        miou = matrix.mean_iou()
        self._log.event(
            "evaluation", stage=stage, vehicle=vehicle, split=split, kind=kind, miou=miou, frames=frames
        )
        return matrix

    # Frames and network

    def _batch(self, keys: Iterable[str]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """image_BCHW and label_BHW at the encoder's input size."""
        pairs = [self._cache.resized(key, self._sights.get(key)) for key in keys]
        image_BHWC = np.stack([image_HWC for image_HWC, _ in pairs])
        return image_BHWC.transpose(0, 3, 1, 2), np.stack([label_HW for _, label_HW in pairs])

    def _predict(self, key: str, label_HW: NDArray[np.uint8], sight: Sight | None) -> NDArray[np.uint8]:
        """prediction_HW of a frame as it is seen, uint8 trainIds at the size of its label."""
        height, width = label_HW.shape
        image_HWC, _ = self._cache.resized(key, sight)
        image_BCHW = image_HWC.transpose(2, 0, 1)[None]
        prediction_HW: NDArray[np.uint8] = self._trainer.predict(image_BCHW, (height, width))[0]
        return prediction_HW

    def _build_trainer(self) -> Trainer:
        """Encoder and network with the very weights that a fleet of this scenario starts from; the encoder
        takes the steps of white-box split learning."""
        config, first = self._config, self._config.first_order
        width, height = parse_image_size(self._job.scenario.image_size)
        encoder = build_encoder(self._job.scenario.encoder.name, config.seed).folded()
        network = build_network(
            config.network.name,
            feature_shape=(encoder.channels, height // encoder.stride, width // encoder.stride),
            feature_stride=encoder.stride,
            num_classes=self._label_space.num_classes,
            seed=network_seed(config.seed),
            weights=Path(config.network.weights) if config.network.weights else None,
        )
        if self._job.start is not None:
            self._job.start.begin(encoder, network)
        return Trainer(
            JointNetwork(encoder, network),
            TrainerConfig(
                loss=first.loss,
                rate=first.rate,
                weight_decay=first.weight_decay,
                schedule=first.schedule,
                total_steps=max(1, len(self._bounds) * first.passes * config.rounds),
                training_threads=config.training_threads,
                inference_threads=config.training_threads,
                seed=derive_seed(config.seed, "training"),
                parts=(PartConfig(prefix="encoder.", rate=config.white_box.rate, weight_decay=0.0),),
            ),
        )


def _registry(job: Job) -> Registry:
    """The fleet's records: each vehicle's frames are known, nothing was sent."""
    scenario = job.scenario
    config = scenario.cloud_config()
    registry = Registry(config.vehicles, label_space=config.label_space, feature_shapes=None)
    for vehicle, share in job.shares.items():
        registry.vehicles[vehicle].hello = Hello(
            vehicle=vehicle,
            session="0" * 8,
            protocol=PROTOCOL_VERSION,
            encoder=scenario.encoder.name,
            bundle_digest="",
            feature_shape=(0, 0, 0),
            image_size=parse_image_size(scenario.image_size),
            label_space=config.label_space,
            frames={split: len(keys) for split, keys in share.splits().items()},
        )
    return registry
