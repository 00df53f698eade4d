"""Whether what a vehicle says of its train frames contradicts what the network has learnt from all others.

Before the network learns from a vehicle's frames, its predictions for them are compared with their labels. A
car in another town, by night or in rain agrees with it less than usual; wrong labels no more than chance
would. The measure of that is Cohen's κ (1960), which is 0 then whatever the classes' shares are.

Features of nothing, or of another frame, still agree: sky is above and road below. So a second measure takes
as chance what a prediction agrees with the labels of the vehicle's *other* frames at the same places. It is 0
where features say nothing of the frame that they are sent for. The yardstick of both is the median of all
others' latest turns, so that most must be honest.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloud_server.algorithms.base import Context, TrainingProgress
from cloud_server.desk.turns import Features
from cloud_server.schedule import Stage
from datasets.labels import VOID
from evaluation.latest import evenly
from evaluation.scores import ConfusionMatrix
from protocol.plans.trust import Trust

log = logging.getLogger(__name__)

_FEWEST_OTHERS = 2
"""Vehicles that another can be told from."""
_LEAST_USUAL = {"agreement": 0.1, "own": 0.05}
"""Medians below which the network knows too little for anybody to be judged by it."""
_SAID = {
    "agreement": "contradict those of the others: the network agrees with their labels",
    "own": "say nothing of themselves: the network tells each from the vehicle's other ones",
}
_ALIKE = 0.9
"""Share of pixels with the same label in two frames of a vehicle, above which they look alike."""
_FOLDS = 4


class Quarantine:
    """Both measures of each vehicle's latest turn; nothing where nobody wants to know."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._plan = context.config.way(Trust)
        self.is_on = self._plan.is_on
        self._latest: dict[str, dict[str, float]] = {"agreement": {}, "own": {}}
        """By measure and vehicle."""

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
        self._latest["agreement"][vehicle] = cohens_kappa(matrix.counts[:, :-1])
        own = own_agreement(label_BHW, prediction_BHW)
        self._latest["own"].pop(vehicle, None)
        if own is not None:
            self._latest["own"][vehicle] = own

    def counts(self, stage: Stage, vehicle: str, progress: TrainingProgress) -> bool:
        """Whether the network is to learn from the turn that was looked at last; one that looks like a liar's
        is told and counted."""
        if not self.is_on or vehicle not in self._latest["agreement"]:
            return True
        found = {name: round(v[vehicle], 4) for name, v in self._latest.items() if vehicle in v}
        told = {"vehicle": vehicle, "stage": stage.number, "round": stage.round, **found}
        self._context.events.event("agreement", **told)
        suspicious = self._suspicious(vehicle)
        if suspicious is None:
            return True
        name, usual = suspicious
        leaves_out = self._plan.quarantine == "leave-out"
        log.warning(
            "the train frames of vehicle %s in turn %d %s by %.2f, usual is %.2f%s",
            vehicle,
            stage.number,
            _SAID[name],
            found[name],
            usual,
            "; it does not learn from them" if leaves_out else "",
        )
        event = "left-out" if leaves_out else "doubted"
        self._context.events.event(event, **told, by=name, usual=round(usual, 4))
        if leaves_out:
            progress.leave_out((vehicle,))
        else:
            progress.doubt(vehicle)
        return not leaves_out

    def _suspicious(self, vehicle: str) -> tuple[str, float] | None:
        """The first measure by which its turn looks like a liar's, and what is usual of it."""
        for name, latest in self._latest.items():
            others = [value for other, value in latest.items() if other != vehicle]
            usual = median(others) if len(others) >= _FEWEST_OTHERS else 0.0
            least = self._plan.agreement * usual
            if usual >= _LEAST_USUAL[name] and latest.get(vehicle, least) < least:
                return name, usual
        return None

    def meta(self) -> dict[str, dict[str, float]]:
        """See `Algorithm.meta`."""
        return {name: dict(values) for name, values in self._latest.items()}

    def restore(self, meta: Mapping[str, Any]) -> None:
        """See `Algorithm.restore`."""
        self._latest = {name: dict(meta.get(name, {})) for name in self._latest}


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


def own_agreement(label_BHW: NDArray[np.uint8], prediction_BHW: NDArray[np.uint8]) -> float | None:
    """(a − s) / (1 − s): predictions agree with their own frames' labels on a share a of the pixels, with the
    labels of the other frames on a share s. Void labels don't count.

    None where frames can't be told apart: of a single one, or of a vehicle that stands still.
    """
    frames = len(label_BHW)
    own, others = _agreement_with_each(label_BHW, prediction_BHW)
    _, alike = _agreement_with_each(label_BHW, label_BHW)
    if frames < 2 or alike > _ALIKE:
        return None
    return (own - others) / (1 - others) if others < 1 else 0.0


def _agreement_with_each(
    label_BHW: NDArray[np.uint8], prediction_BHW: NDArray[np.uint8]
) -> tuple[float, float]:
    """Shares of the labels' pixels that agree with the predictions for the same frame, and for the others."""
    known_BHW = label_BHW != VOID
    total = int(known_BHW.sum())
    own = every = 0
    for number, prediction_HW in enumerate(prediction_BHW):
        agreed_B = ((label_BHW == prediction_HW) & known_BHW).sum(axis=(1, 2))
        own += int(agreed_B[number])
        every += int(agreed_B.sum())
    return own / max(1, total), (every - own) / max(1, total * (len(label_BHW) - 1))
