"""Learning from loss maps by a model of the cloud's network that is fitted to them as they come.

Legend: B frames of a batch, C channels, H W feature rows and columns, h w rows and columns of the head's
logits; θ all encoder parameters, φ those that learn, ψ the head's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_client.errors import StateError, TurnRefused
from edge_client.estimators.activation import estimator_of
from edge_client.learners.activation import ask_at_perturbed_features
from edge_client.learners.subspaces import begin_learning
from edge_client.learners.surrogate_head import Answered, Surrogate
from edge_client.learners.way_back import linearise
from edge_client.local.cross_entropy import downsample_label
from edge_client.local.head import LocalHead
from edge_client.optimizers import Adam
from edge_client.state import VehicleState, part_of
from edge_client.turn import TurnTools
from protocol.codec.tensor import decode
from protocol.errors import SettingError
from protocol.messages import SurrogatePlan
from protocol.noise import derive_seed

_HEAD, _ENCODER = "surrogate/", "encoder/"
"""Prefixes, in the vehicle's state, of ψ with its optimizer, and of the encoder's optimizer with φ."""


def learn_from_surrogate(tools: TurnTools, state: VehicleState) -> tuple[VehicleState, float | None]:
    """One seeded query a batch; ψ is fitted to its answer, then φ takes one step of Adam.

    ψ, φ and both optimizers go on from turn to turn. Answers that are replayed are kept for a turn at most:
    after it the cloud's network may be another one.

    Raises:
        TurnRefused: the bundle has no VJP, there is no head that fits, the plan's settings don't fit, the
            cloud's loss maps stay unusable, or encoder or head diverged.
    """
    plan = tools.turn.learner
    assert isinstance(plan, SurrogatePlan)
    head = _head(tools)
    try:
        activation = estimator_of(plan)
        activation.map_size(tools.encoder.spec.feature_shape)
        surrogate = Surrogate(head, plan, activation)
        surrogate.load_state_arrays(part_of(state.optimizer, _HEAD))
        optimizer = Adam(plan.rate)
    except (SettingError, StateError) as error:
        raise TurnRefused(f"the turn's surrogate settings don't fit: {error}") from error
    encoder = VehicleState(theta=state.theta, optimizer=part_of(state.optimizer, _ENCODER))
    learning = begin_learning(tools, encoder, optimizer)
    tools.send_train_labels()
    losses: list[float] = []
    for epoch in range(tools.turn.epochs):
        draw = tools.views.draw(epoch)
        for number, batch in enumerate(tools.batches(epoch)):
            where = f"epoch {epoch}, batch {number}"
            seed = derive_seed(tools.turn.seed, "zeroth-order", epoch, number)
            linearised = linearise(tools, learning, batch, draw, plan, seed)
            asked = ask_at_perturbed_features(tools, batch, linearised.features_BCHW, activation, seed, draw)
            answered = Answered(
                features_BCHW=decode(asked.coded, expected_shape=linearised.features_BCHW.shape),
                label_Bhw=_labels(tools, batch, draw, head),
                perturbations=asked.perturbations,
                maps_BMyx=asked.maps_BMyx,
            )
            surrogate.fit(answered, seed)
            if not np.isfinite(surrogate.parameters).all():
                raise TurnRefused(
                    f"the head diverged in {where}; lower surrogate.fit_rate (now {plan.fit_rate:g})"
                )
            gradient = linearised.pull_back(surrogate.estimate(answered))
            learning.step(gradient, where=where)
            losses.append(float(asked.maps_BMyx[:, 0].mean(dtype=np.float64)))
    learnt = learning.state()
    arrays: dict[str, NDArray[np.generic]] = {}
    for prefix, part in ((_ENCODER, learnt.optimizer), (_HEAD, surrogate.state_arrays())):
        arrays |= {prefix + name: array for name, array in part.items()}
    return VehicleState(theta=learnt.theta, optimizer=arrays), float(np.mean(losses)) if losses else None


def _head(tools: TurnTools) -> LocalHead:
    """The vehicle's head.

    Raises:
        TurnRefused: it has none, or one that is trained from its own labels alone.
    """
    head = tools.local_head
    if head is None or head.spec.normalisation != "fixed":
        has = "no local head" if head is None else "a local head whose normalisation is not fixed"
        raise TurnRefused(
            f"this vehicle has {has}, and the estimator surrogate needs one that is; give it the folder that "
            "a launch with this estimator wrote (--local-head, or local_head in its settings)"
        )
    return head


def _labels(
    tools: TurnTools, batch: tuple[int, ...], draw: int | None, head: LocalHead
) -> NDArray[np.uint8] | None:
    """label_Bhw, seen as `draw` says, at the size of the head's logits; None where the loss is an entropy."""
    if not tools.turn.follows_labels:
        return None
    size_hw = head.spec.logit_shape[1], head.spec.logit_shape[2]
    return np.stack([downsample_label(tools.views.label(index, draw), size_hw) for index in batch])
