"""Whether what a vehicle says of its train frames contradicts what the network has learnt from all others.

Before the network learns from a vehicle's frames, its predictions for them are compared with their labels. A
car in another town, by night or in rain agrees with it less than usual; wrong labels no more than chance
would. The measure of that is Cohen's κ (1960), which is 0 then whatever the classes' shares are.

The yardstick is the median of all others' latest turns, so that most must be honest.

Features of nothing, or of one frame for every frame, still agree: sky is above and road below. So a second
measure asks without a network, and of the vehicle alone, what its features say of their own frames.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloud_server.algorithms.base import Context, TrainingProgress
from cloud_server.algorithms.linear_probe import explained_share
from cloud_server.desk.turns import Features
from cloud_server.schedule import Stage
from evaluation.latest import evenly
from evaluation.scores import ConfusionMatrix
from protocol.plans.trust import Trust

log = logging.getLogger(__name__)

_FEWEST_OTHERS = 2
"""Vehicles that another can be told from."""
_LEAST_USUAL = 0.1
"""κ below which the network knows too little for anybody to be judged by it."""
_FOLDS = 4


class Quarantine:
    """κ of each vehicle's latest turn, and frames of turns under way; nothing where nobody wants to know."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._plan = context.config.way(Trust)
        self.is_on = self._plan.is_on
        self._kappa: dict[str, float] = {}
        """By vehicle."""
        self._seen: dict[str, dict[int, tuple[NDArray[np.float32], NDArray[np.uint8]]]] = {}
        """By vehicle and index: features and labels of the train frames of its turn that are looked at."""

    def look(self, vehicle: str, train: Features) -> None:
        """The network is about to learn from these train frames, or from the first of them."""
        if not self.is_on:
            return
        few = list(evenly(len(train.indices), self._plan.frames))
        label_BHW = self._context.labels_of(vehicle, train)[few]
        height, width = label_BHW.shape[1:]
        prediction_BHW = self._context.trainer.predict(train.features_BCHW[few], (height, width))
        matrix = ConfusionMatrix(self._context.label_space)
        for label_HW, prediction_HW in zip(label_BHW, prediction_BHW, strict=True):
            matrix.add(label_HW, prediction_HW)
        self._kappa[vehicle] = cohens_kappa(matrix.counts[:, :-1])
        self._seen[vehicle] = {
            train.indices[place]: (train.features_BCHW[place], label_HW)
            for place, label_HW in zip(few, label_BHW, strict=True)
        }

    def look_on(self, vehicle: str, batch: Features) -> None:
        """It learns from more of them."""
        seen = self._seen.get(vehicle)
        if seen is None or len(seen) >= self._plan.frames:
            return
        if seen.keys() >= set(batch.indices):
            return
        for place, label_HW in enumerate(self._context.labels_of(vehicle, batch)):
            if len(seen) < self._plan.frames:
                seen.setdefault(batch.indices[place], (batch.features_BCHW[place], label_HW))

    def counts(self, stage: Stage, vehicle: str, progress: TrainingProgress) -> bool:
        """Whether the network is to learn from the turn that was looked at last; one that looks like a liar's
        is told and counted."""
        if not self.is_on or vehicle not in self._kappa:
            return True
        kappa, usual, explained = self._kappa[vehicle], self._usual(vehicle), self._explained(vehicle)
        told = {"vehicle": vehicle, "stage": stage.number, "round": stage.round}
        told |= {
            "agreement": round(kappa, 4),
            "explained": None if explained is None else round(explained, 4),
        }
        self._context.events.event("agreement", **told)
        if usual and kappa < self._plan.agreement * usual:
            why = (
                f"contradict those of the others: the network agrees with their labels by {kappa:.2f}, "
                f"usual is {usual:.2f}"
            )
        elif explained is not None and self._plan.explained and explained < self._plan.explained:
            why = (
                f"say nothing of themselves: features explain {explained:.3f} of what sets their labels apart"
            )
        else:
            return True
        leaves_out = self._plan.quarantine == "leave-out"
        log.warning(
            "the train frames of vehicle %s in turn %d %s%s",
            vehicle,
            stage.number,
            why,
            "; it does not learn from them" if leaves_out else "",
        )
        self._context.events.event("left-out" if leaves_out else "doubted", **told, usual=round(usual, 4))
        if leaves_out:
            progress.leave_out((vehicle,))
        else:
            progress.doubt(vehicle)
        return not leaves_out

    def _explained(self, vehicle: str) -> float | None:
        """What its features of the turn explain of their labels; None where that can't be told."""
        frames = self._seen.pop(vehicle, {}).values()
        if not frames:
            return None
        features_BCHW, label_BHW = (np.stack(values) for values in zip(*frames, strict=True))
        return explained_share(features_BCHW, label_BHW, self._context.label_space.num_classes)

    def _usual(self, vehicle: str) -> float:
        """The median κ of the others; 0 where nobody can be judged by it."""
        others = [value for other, value in self._kappa.items() if other != vehicle]
        usual = median(others) if len(others) >= _FEWEST_OTHERS else 0.0
        return usual if usual >= _LEAST_USUAL else 0.0

    def meta(self) -> dict[str, float]:
        """See `Algorithm.meta`."""
        return dict(self._kappa)

    def restore(self, meta: Mapping[str, Any]) -> None:
        """See `Algorithm.restore`."""
        self._kappa = dict(meta)


def folds(vehicles: Sequence[str]) -> list[Sequence[str]]:
    """Vehicles in parts: each is judged by a network that has learnt from the other parts alone."""
    parts = min(_FOLDS, len(vehicles))
    return [vehicles[number::parts] for number in range(parts)]


def cohens_kappa(counts_KK: NDArray[np.int64]) -> float:
    """κ of a confusion matrix; 0 where nothing was counted, or chance alone would agree."""
    total = counts_KK.sum()
    if total == 0:
        return 0.0
    by_chance = float(counts_KK.sum(axis=0) @ counts_KK.sum(axis=1)) / float(total) ** 2
    agreed = float(np.trace(counts_KK)) / float(total)
    return (agreed - by_chance) / (1 - by_chance) if by_chance < 1 else 0.0
