"""Features that vehicles upload while they learn by themselves, and gradients that their heads follow.

Legend: B frames of a batch, C channels, H W feature rows and columns.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cloud_server.desk.handlers.visit import Handlers, Visit, identity, refusal
from cloud_server.desk.turns import Features
from cloud_server.errors import RequestError
from protocol.codec.tensor import encode
from protocol.messages import Ack, AskGradient, CseFslPlan, FslSagePlan, Gradient, Smashed


class TakesSmashed(Protocol):
    """An algorithm whose network learns from what vehicles upload on their way."""

    def take_smashed(self, vehicle: str, step: int, batch: Features) -> None:
        """Keep a batch until the stage is done; `step` orders those of one vehicle."""
        ...


class GivesGradients(Protocol):
    """An algorithm whose vehicles' heads follow the cloud's gradients."""

    def gradient(self, vehicle: str, batch: Features) -> tuple[float, NDArray[np.float32]]:
        """Loss and ∂loss/∂features (B, C, H, W) of the network as it is; changes nothing.

        Raises:
            DivergedError: the loss or the gradient is not finite.
        """
        ...


def smashed_handlers(algorithm: TakesSmashed) -> Handlers:
    """Those of its turns in which vehicles learn."""
    return {Smashed: partial(_take, algorithm)}


def aligning_handlers(algorithm: GivesGradients) -> Handlers:
    """Those of its turns in which heads are aligned."""
    return {AskGradient: partial(_answer, algorithm)}


def _take(algorithm: TakesSmashed, request: Smashed, visit: Visit) -> Ack:
    """Keep a batch, no more of them than the turn says."""
    active = visit.active
    if not isinstance(active.turn.learner, CseFslPlan | FslSagePlan):
        raise refusal(Smashed)
    features_BCHW = visit.train_features(request)
    if active.train_steps >= visit.checks.train_steps(active.turn):
        raise RequestError(f"turn {request.turn_id} has had all its {active.train_steps} uploads of batches")
    views = visit.checks.views(active.turn, request.frames, request.draw)
    batch = Features(indices=request.frames, features_BCHW=features_BCHW, views=views)
    algorithm.take_smashed(request.vehicle, request.step, batch)
    active.train_steps += 1
    return Ack(**identity(request))


def _answer(algorithm: GivesGradients, request: AskGradient, visit: Visit) -> Gradient:
    """The gradient, no more often about a frame than anything is answered, and than the turn says."""
    active = visit.active
    plan = active.turn.learner
    if not isinstance(plan, FslSagePlan) or plan.align_batches == 0:
        raise refusal(AskGradient)
    features_BCHW = visit.train_features(request)
    visit.check_answers(request.frames, 1)
    if active.queries >= plan.align_batches:
        raise RequestError(f"turn {request.turn_id} has had all its {active.queries} gradients")
    views = visit.checks.views(active.turn, request.frames, request.draw)
    batch = Features(indices=request.frames, features_BCHW=features_BCHW, views=views)
    loss, gradient_BCHW = algorithm.gradient(request.vehicle, batch)
    active.count_answers(request.frames, 1)
    active.answered_largely(request.step)
    return Gradient(
        **identity(request), loss=loss, rate_share=0.0, gradient=encode(gradient_BCHW, plan.gradient_bits)
    )
