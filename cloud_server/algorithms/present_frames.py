"""What the cloud makes of each vehicle's present frames, without a label, under a network that stays.

Statistics of BatchNorm of its own, which it is answered with and served by (AdaBN, Li et al., 2017, arXiv
1603.04779; mixed with the start's as in Schneider et al., 2020, arXiv 2006.16971); pseudo-labels where
predictions are sure, from an average over turns (temporal ensembling, Laine and Aila, 2017, arXiv
1610.02242); and a guard, which finds that a turn has done harm. All follows from the features that come up at
a turn's end, is kept when its stage is committed, and stays as it is until then.

Legend: n frames, K classes, C channels, H W feature rows and columns, h w rows and columns of logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cloud_server.algorithms.base import Context, TrainingProgress
from cloud_server.algorithms.traits import wants_present_frames
from cloud_server.desk.turns import Features
from cloud_server.schedule import Kind, Stage
from cloud_server.storage.vehicle_store import VehicleStore
from cloud_server.training.batch_statistics import mixed_statistics
from datasets.labels import VOID
from evaluation.scores import ConfusionMatrix
from protocol.errors import SettingError
from protocol.noise import derive_seed
from protocol.plans.present import Present

_STATISTICS = "statistics/"
"""Prefix of BatchNorm's buffers among what is kept of a vehicle."""


class PresentFrames:
    """What is known of each vehicle's frames; nothing where nobody wants to know."""

    def __init__(self, context: Context) -> None:
        """Nothing is known yet.

        Raises:
            SettingError: the network has no statistics of which some could be a vehicle's own.
        """
        config = context.config
        self._context = context
        self._trainer = context.trainer
        self._plan = config.way(Present)
        self._pseudo_labels = config.adaptation.objective == "pseudo-labels"
        self._store = (
            VehicleStore(context.run_folder / "cloud" / "present", capacity=config.store_capacity)
            if wants_present_frames(self._plan, config.adaptation.objective)
            else None
        )
        self._taken_back: set[tuple[int, str]] = set()
        if self._plan.statistics and not any("running_mean" in name for name in self._trainer.weights()):
            raise SettingError(
                f"network {config.network.name} has no BatchNorm, whose statistics could be a vehicle's own: "
                f"present.statistics must be 0, got {self._plan.statistics:g}"
            )

    def uploads(self, stage: Stage) -> tuple[str, ...]:
        """Splits whose features a stage's turns bring for this, besides others."""
        if self._store is None or stage.kind is Kind.FINAL:
            return ()
        return ("train", "val") if stage.kind is Kind.INITIAL and self._plan.guard else ("train",)

    @contextmanager
    def network(self, vehicle: str) -> Iterator[None]:
        """Let the trainer's network have the vehicle's statistics, in the body, where it has some."""
        with self._trainer.borrowed_weights(self._with(self._statistics_of(self._known(vehicle)))):
            yield

    def targets(self, vehicle: str, indices: tuple[int, ...]) -> NDArray[np.uint8] | None:
        """What losses of these train frames are against: their label_BHW, pseudo-labels at the size of the
        logits, or None where it is the entropy."""
        if not self._pseudo_labels:
            return self._context.targets(vehicle, indices)
        known = self._known(vehicle)
        assert known, "they came before the first turn of learning"
        places = {int(frame): place for place, frame in enumerate(known["frames"])}
        likely_BKhw = known["likely"][[places[index] for index in indices]].float()
        sure_Bhw, label_Bhw = likely_BKhw.max(dim=1)
        label_Bhw[sure_Bhw < self._plan.confidence] = VOID
        return label_Bhw.to(torch.uint8).numpy()

    def take(
        self, stage: Stage, vehicle: str, uploads: Mapping[str, Features], progress: TrainingProgress
    ) -> bool:
        """Look at a vehicle's train frames at the end of its turn; returns whether the turn counts.

        What is known of the vehicle becomes what is seen now, or stays as it was before a turn that does not
        count. The trainer holds the network that the vehicle is served by, with the start's statistics.
        """
        if self._store is None or stage.kind is Kind.FINAL:
            return True
        train = uploads["train"]
        known = self._known(vehicle)
        found = {_STATISTICS + name: value for name, value in self._estimate(stage, vehicle, train).items()}
        notes: dict[str, float] = {}
        if self._plan.guard or self._pseudo_labels:
            with self._trainer.borrowed_weights(self._with(self._statistics_of(found))):
                likely_nKhw = torch.from_numpy(self._trainer.probabilities(train.features_BCHW))
            found["frames"] = torch.tensor(train.indices)
            if self._plan.guard:
                label_nhw = likely_nKhw.argmax(dim=1).to(torch.uint8)
                found["reference"] = known["reference"] if known else label_nhw
                notes["agreement"] = self._agreement(found["reference"], label_nhw)
            if self._pseudo_labels:
                if known:
                    likely_nKhw = torch.lerp(likely_nKhw, known["likely"].float(), self._plan.momentum)
                found["likely"] = likely_nKhw.half()
                sure_nhw = likely_nKhw.amax(dim=1) >= self._plan.confidence
                notes["sure"] = sure_nhw.float().mean().item()
        counts = notes.get("agreement", 1.0) >= self._plan.guard
        if counts:
            self._store.put(vehicle, found, score=0.0, turn_id=stage.number)
        else:
            self._taken_back.add((stage.number, vehicle))
            progress.take_back(vehicle)
        if stage.kind is Kind.TRAIN:
            rounded = {name: round(value, 5) for name, value in notes.items()}
            self._context.events.event(
                "present" if counts else "taken_back",
                stage=stage.number,
                round=stage.round,
                vehicle=vehicle,
                **rounded,
            )
        return counts

    def took_back(self, stage: Stage, vehicle: str) -> bool:
        """Whether the turn that the vehicle has ended in this stage does not count."""
        return (stage.number, vehicle) in self._taken_back

    def meta(self) -> dict[str, Any]:
        """See `Algorithm.meta`."""
        return self._store.references() if self._store else {}

    def restore(self, meta: Mapping[str, Any]) -> None:
        """See `Algorithm.restore`."""
        if self._store:
            self._store.restore(meta)

    def committed(self) -> None:
        """See `Algorithm.committed`."""
        self._taken_back.clear()
        if self._store:
            self._store.prune()

    def _known(self, vehicle: str) -> dict[str, Tensor] | None:
        return self._store.get(vehicle) if self._store else None

    def _statistics_of(self, known: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        return {
            name.removeprefix(_STATISTICS): value
            for name, value in (known or {}).items()
            if name.startswith(_STATISTICS)
        }

    def _with(self, statistics: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """All weights, with these statistics; None: there is nothing to change."""
        return {**self._trainer.weights(), **statistics} if statistics else None

    def _estimate(self, stage: Stage, vehicle: str, train: Features) -> dict[str, Tensor]:
        if not self._plan.statistics:
            return {}
        own = self._trainer.estimate_statistics(
            train.features_BCHW,
            batch_size=self._context.config.first_order.batch_size,
            seed=derive_seed(self._context.config.seed, "statistics", stage.number, vehicle),
        )
        return mixed_statistics(self._trainer.weights(), own, self._plan.statistics)

    def _agreement(self, reference_nhw: Tensor, label_nhw: Tensor) -> float:
        """Mean IoU of predictions with earlier ones, over the classes of these; 0 to 1."""
        matrix = ConfusionMatrix(self._context.label_space)
        matrix.add(*(labels_nhw.flatten(0, 1).numpy() for labels_nhw in (reference_nhw, label_nhw)))
        share = float(np.mean(matrix.class_iou()[matrix.counts.sum(axis=1) > 0]))
        assert math.isfinite(share), "every pixel of the reference has a class"
        return share
