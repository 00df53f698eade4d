"""Somebody else's estimator or learner, by `package.module:name`, where the vehicle's operator allows it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import msgspec
import numpy as np

from edge_client.errors import TurnRefused
from edge_client.estimators import Estimator, FeatureEstimator
from edge_client.learners.activation import follow_loss_maps
from edge_client.learners.zeroth_order import follow_losses
from edge_client.optimizers import Optimizer
from edge_client.state import VehicleState
from edge_client.turn import TurnTools
from protocol.doors import Door, DoorError, misfit
from protocol.messages import Ask, OwnPlan, Told

Reply = TypeVar("Reply", bound=msgspec.Struct)


class OwnEstimator(Protocol):
    """Turns the cloud's answers into gradients; asking, stepping and keeping state are ours."""

    Settings: type[msgspec.Struct]
    """What its settings are, with defaults and checks."""

    def build(self, settings: Any) -> Estimator | FeatureEstimator:
        """The estimator of one turn."""
        ...

    def optimizer(self, settings: Any) -> Optimizer:
        """What takes the steps; its state is kept from turn to turn."""
        ...


class OwnLearner(Protocol):
    """All that a vehicle does to learn in a turn."""

    Settings: type[msgspec.Struct]
    """What its settings are, with defaults and checks."""

    def learn(
        self, tools: TurnTools, state: VehicleState, settings: Any
    ) -> tuple[VehicleState, float | None]:
        """The state after the turn, and the mean loss on the way (None where nothing was learnt).

        Raises:
            TurnRefused: it can't be done; the message says why.
        """
        ...


class _Learner(Protocol):
    """Of either kind."""

    Settings: type[msgspec.Struct]


LEARNER_DOOR: Door[_Learner] = Door("learner", _Learner, {})  # type: ignore[type-abstract]


def find_learner(name: str) -> OwnEstimator | OwnLearner:
    """What stands behind a name.

    Raises:
        DoorError: nothing that fits.
    """
    found: Any = LEARNER_DOOR.find(name)
    reason = misfit(found, OwnLearner if hasattr(found, "learn") else OwnEstimator)
    if reason is not None:
        raise LEARNER_DOOR.refuse(name, reason)
    fitting: OwnEstimator | OwnLearner = found
    return fitting


def check_settings(name: str, settings: Mapping[str, object]) -> msgspec.Struct:
    """Settings as the struct of what stands behind a name.

    Raises:
        DoorError: they don't fit it, or nothing that fits is behind the name.
    """
    try:
        with LEARNER_DOOR.guard(name, keeping=(msgspec.ValidationError,)):
            return msgspec.convert(settings, find_learner(name).Settings)
    except msgspec.ValidationError as error:
        raise LEARNER_DOOR.refuse(name, f"its settings don't fit: {error}") from error


def learn_as_allowed(tools: TurnTools, state: VehicleState) -> tuple[VehicleState, float | None]:
    """Do as somebody else's estimator or learner says.

    Raises:
        TurnRefused: the vehicle's operator has not allowed it, it doesn't fit, or it can't do this turn.
    """
    plan = tools.turn.learner
    assert isinstance(plan, OwnPlan)
    if plan.target not in tools.allowed_learners:
        raise TurnRefused(
            f"the cloud wants this vehicle to learn by {plan.target!r}, which its operator has not allowed; "
            f"start the vehicle with --allow-learner {plan.target}, if you trust it"
        )
    try:
        settings = check_settings(plan.target, plan.settings)
        learner: Any = find_learner(plan.target)
        if hasattr(learner, "learn"):
            return _result_of(plan.target, learner.learn(tools, state, settings), state)
        with LEARNER_DOOR.guard(plan.target):
            estimator, optimizer = learner.build(settings), learner.optimizer(settings)
        return _estimate(plan.target, tools, state, estimator, optimizer)
    except DoorError as error:
        raise TurnRefused(str(error)) from error


def _result_of(
    target: str, result: tuple[VehicleState, float | None], before: VehicleState
) -> tuple[VehicleState, float | None]:
    """What somebody else's learner gives back, checked.

    Raises:
        TurnRefused: it is not a state of this encoder, or not finite.
    """
    try:
        state, loss = result
        theta = np.asarray(state.theta)
        loss = None if loss is None else float(loss)
    except (TypeError, ValueError, AttributeError) as error:
        raise TurnRefused(
            f"learner {target}: learn must return (VehicleState, loss or None): {error}"
        ) from error
    if theta.shape != before.theta.shape or theta.dtype != np.float32 or not np.isfinite(theta).all():
        raise TurnRefused(
            f"learner {target}: θ must be {before.theta.size} finite float32 numbers, got {theta.dtype} "
            f"{theta.shape}"
        )
    if loss is not None and not math.isfinite(loss):
        raise TurnRefused(f"learner {target}: the loss must be finite, got {loss}")
    return state, loss


def _estimate(
    target: str, tools: TurnTools, state: VehicleState, estimator: Any, optimizer: Any
) -> tuple[VehicleState, float | None]:
    """One estimate and one step a batch, from losses or from loss maps, as the estimator asks.

    Raises:
        TurnRefused: it is no estimator, or what it steps with no optimizer.
    """
    kind = FeatureEstimator if hasattr(estimator, "map_size") else Estimator
    for what, found, wanted in (("build", estimator, kind), ("optimizer", optimizer, Optimizer)):
        reason = misfit(found, wanted)
        if reason is not None:
            raise TurnRefused(f"learner {target}: what {what} makes {reason}")
    follow = follow_loss_maps if kind is FeatureEstimator else follow_losses
    return follow(tools, state, estimator, optimizer)


def consult(tools: TurnTools, questions: Sequence[msgspec.Struct], answer: type[Reply]) -> list[Reply]:
    """Ask the algorithm in the cloud questions of your own, several at a time; its answers, in their order.

    Args:
        questions: structs, of types that the algorithm's handlers name.
        answer: what it answers with.

    Raises:
        TurnRefused: an answer is something else.
    """
    asked = tools.ask(
        Ask(**tools.header(), kind=type(question).__name__, content=msgspec.msgpack.encode(question))
        for question in questions
    )
    try:
        return [msgspec.msgpack.decode(told.content, type=answer) for told in asked if isinstance(told, Told)]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TurnRefused(f"the cloud's answer is no {answer.__name__}: {error}") from error
