"""Learning from gradients: white-box split learning, the upper bound of what losses alone can teach.

Legend: B frames of a batch, C channels, H W feature rows and columns; θ all encoder parameters, float32 (n,);
φ those that learn.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_client.errors import TurnRefused
from edge_client.learners.subspaces import begin_learning
from edge_client.optimizers import Adam
from edge_client.state import VehicleState
from edge_client.turn import TurnTools
from protocol.batches import batch_bounds
from protocol.codec.tensor import CodecError, decode
from protocol.errors import SettingError
from protocol.messages import Gradient, TrainStep, WhiteBoxPlan


def learn_from_gradients(tools: TurnTools, state: VehicleState) -> tuple[VehicleState, float | None]:
    """Send the features of each batch, pull the gradient that comes back through the encoder, step with Adam.

    The features are quantised on their way up; the gradient is taken as that of the unquantised ones.

    Raises:
        TurnRefused: the bundle has no VJP, the plan's settings don't fit, an answer is not what it should be,
            or the encoder diverged.
    """
    plan = tools.turn.learner
    assert isinstance(plan, WhiteBoxPlan)
    try:
        optimizer = Adam(plan.rate)
    except SettingError as error:
        raise TurnRefused(f"the turn's white-box settings don't fit: {error}") from error
    learning = begin_learning(tools, state, optimizer, rate_name="white-box rate")
    tools.send_train_labels()
    losses: list[float] = []
    for epoch in range(tools.turn.epochs):
        order, draw = tools.shuffled(epoch), tools.views.draw(epoch)
        for start, stop in batch_bounds(len(order), tools.turn.batch_size):
            batch = tuple(order[start:stop])
            linearised = tools.linearise(learning.theta, batch, learning.subspace, draw)
            features = tools.code(linearised.features_BCHW)
            step = TrainStep(**tools.header(), frames=batch, features=features, draw=draw)
            [answer] = tools.ask([step])
            assert isinstance(answer, Gradient)
            gradient_BCHW = checked_gradient(answer, linearised.features_BCHW.shape)
            optimizer.rate = plan.rate * answer.rate_share
            learning.step(linearised.pull_back(gradient_BCHW), where=f"epoch {epoch}")
            losses.append(answer.loss)
    mean_loss = float(np.mean(losses)) if losses else None
    return learning.state(), mean_loss


def checked_gradient(answer: Gradient, shape_BCHW: tuple[int, ...]) -> NDArray[np.float32]:
    """∂loss/∂features of the batch.

    Raises:
        TurnRefused: it has another shape than the features, or a number in the answer is not finite.
    """
    if not math.isfinite(answer.loss):
        raise TurnRefused(f"expected a finite loss, the cloud answered {answer.loss}")
    try:
        return decode(answer.gradient, expected_shape=shape_BCHW)
    except CodecError as error:
        raise TurnRefused(f"the cloud answered with an unusable gradient: {error}") from error
