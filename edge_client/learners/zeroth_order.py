"""Learning from losses alone: perturb the encoder, ask, estimate, step (BlackFed, arXiv 2410.24181).

Legend: B frames of a batch; θ all encoder parameters, float32 (n,); φ those that learn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_client.errors import TurnRefused
from edge_client.estimators import Estimator
from edge_client.estimators.spsa import Spsa
from edge_client.learners.subspaces import begin_learning
from edge_client.optimizers import Nesterov, Optimizer
from edge_client.state import VehicleState
from edge_client.turn import TurnTools
from protocol.errors import SettingError
from protocol.messages import Answer, Feedback, Query, Request, SpsaPlan
from protocol.plans.spsa import step_seed


def learn_from_losses(tools: TurnTools, state: VehicleState) -> tuple[VehicleState, float | None]:
    """SPSA-GC: q two-sided queries a batch, one Nesterov step from their mean.

    Raises:
        TurnRefused: the plan's settings don't fit, an answer is not finite, or the encoder diverged.
    """
    plan = tools.turn.learner
    assert isinstance(plan, SpsaPlan)
    try:
        estimator = Spsa(perturbation=plan.perturbation, queries=plan.queries)
        optimizer = Nesterov(rate=plan.rate, momentum=plan.momentum)
    except SettingError as error:
        raise TurnRefused(f"the turn's zeroth-order settings don't fit: {error}") from error
    return follow_losses(tools, state, estimator, optimizer)


def follow_losses(
    tools: TurnTools, state: VehicleState, estimator: Estimator, optimizer: Optimizer
) -> tuple[VehicleState, float | None]:
    """Ask for the losses that an estimator proposes, batch after batch, and take a step from each estimate.

    Raises:
        TurnRefused: an answer is not finite, or the encoder diverged.
    """
    learning = begin_learning(tools, state, optimizer)
    tools.send_train_labels()
    losses: list[float] = []
    for epoch in range(tools.turn.epochs):
        for number, batch in enumerate(tools.batches(epoch)):
            seed = step_seed(tools.turn.seed, epoch, number)
            points = estimator.propose(learning.phi, seed)
            thetas = map(learning.subspace.theta_of, points)
            queries = _queries(tools, thetas, batch, tools.views.draw(epoch))
            batch_losses = _single_losses(tools.ask(queries))
            learning.step(estimator.estimate(batch_losses), where=f"epoch {epoch}, batch {number}")
            losses.extend(batch_losses)
    mean_loss = float(np.mean(losses)) if losses else None
    return learning.state(), mean_loss


def _queries(
    tools: TurnTools, thetas: Iterable[NDArray[np.float32]], batch: tuple[int, ...], draw: int | None
) -> Iterator[Request]:
    """All of them about the same view of the frames."""
    image_BHWC = tools.views.images(batch, draw)
    for theta in thetas:
        yield Query(**tools.header(), frames=batch, features=tools.encode(theta, image_BHWC), draw=draw)


def _single_losses(answers: Sequence[Answer]) -> list[float]:
    """One finite loss a query.

    Raises:
        TurnRefused: the cloud answered with another number of losses, or with NaN or infinity.
    """
    losses = []
    for answer in answers:
        assert isinstance(answer, Feedback)
        if len(answer.losses) != 1 or not math.isfinite(answer.losses[0]):
            raise TurnRefused(f"expected one finite loss, the cloud answered {answer.losses}")
        losses.append(answer.losses[0])
    return losses
