"""White-box learning: features of a batch come, one first-order step is taken, their gradient goes back.

Legend: B frames of a batch, C channels, H W feature rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cloud_server.desk.handlers.visit import Handlers, Visit, identity, refusal
from cloud_server.desk.turns import Features
from cloud_server.errors import RequestError
from protocol.codec.tensor import encode
from protocol.messages import Gradient, TrainStep, WhiteBoxPlan


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a vehicle gets for its features."""

    loss: float
    """Of the batch, before the step."""
    rate_share: float
    """Share of its highest rate that the step was taken with."""
    gradient_BCHW: NDArray[np.float32]
    """∂loss/∂features, before the step."""


class TakesTrainSteps(Protocol):
    """An algorithm whose vehicles learn from gradients."""

    def train_step(self, vehicle: str, batch: Features) -> StepResult:
        """Learn from a batch; called once for each of the turn's training steps, in their order.

        Raises:
            DivergedError: the loss or the gradient is not finite.
        """
        ...


def gradient_handlers(algorithm: TakesTrainSteps) -> Handlers:
    """Those of its turns in which vehicles learn from gradients."""
    return {TrainStep: partial(_answer, algorithm)}


def _answer(algorithm: TakesTrainSteps, request: TrainStep, visit: Visit) -> Gradient:
    """Learn from a batch once, no more often than the turn says."""
    features_BCHW = visit.train_features(request)
    active = visit.active
    plan = active.turn.learner
    if not isinstance(plan, WhiteBoxPlan):
        raise refusal(TrainStep)
    if active.train_steps >= visit.checks.train_steps(active.turn):
        raise RequestError(f"turn {request.turn_id} has had all its {active.train_steps} training steps")
    views = visit.checks.views(active.turn, request.frames, request.draw)
    batch = Features(indices=request.frames, features_BCHW=features_BCHW, views=views)
    result = algorithm.train_step(request.vehicle, batch)
    active.train_steps += 1
    active.answered_largely(request.step)
    return Gradient(
        **identity(request),
        loss=result.loss,
        rate_share=result.rate_share,
        gradient=encode(result.gradient_BCHW, plan.gradient_bits),
    )
