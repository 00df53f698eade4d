"""Learning from loss maps: perturb the features, ask once, estimate their gradient, pull it back to θ.

Legend: B frames of a batch, C channels, H W feature rows and columns, K seeds, M maps; θ all encoder
parameters, float32 (n,); φ those that learn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_client.errors import TurnRefused
from edge_client.estimators import FeatureEstimator, Perturbations
from edge_client.estimators.activation import estimator_of
from edge_client.learners.loss_maps import ask_for_loss_maps
from edge_client.learners.subspaces import begin_learning
from edge_client.learners.way_back import linearise
from edge_client.optimizers import Adam, Optimizer
from edge_client.state import VehicleState
from edge_client.turn import TurnTools
from protocol.codec.tensor import EncodedTensor
from protocol.errors import SettingError
from protocol.messages import ActivationPlan, LossMapPlan, SeededQuery
from protocol.noise import derive_seed
from protocol.perturbation import pack_scale


def learn_from_loss_maps(tools: TurnTools, state: VehicleState) -> tuple[VehicleState, float | None]:
    """One seeded query a batch, one step of Adam from its estimate.

    The features are quantised on their way up; the gradient is taken as that of the unquantised ones.

    Raises:
        TurnRefused: the bundle has no VJP, the plan's settings don't fit, the cloud's loss maps stay
            unusable, or the encoder diverged.
    """
    plan = tools.turn.learner
    assert isinstance(plan, ActivationPlan)
    try:
        estimator = estimator_of(plan)
        estimator.map_size(tools.encoder.spec.feature_shape)
        optimizer = Adam(plan.rate)
    except SettingError as error:
        raise TurnRefused(f"the turn's activation settings don't fit: {error}") from error
    return follow_loss_maps(tools, state, estimator, optimizer, plan)


def follow_loss_maps(
    tools: TurnTools,
    state: VehicleState,
    estimator: FeatureEstimator,
    optimizer: Optimizer,
    plan: LossMapPlan | None = None,
) -> tuple[VehicleState, float | None]:
    """Ask for loss maps at the features that an estimator proposes, and take a step from each estimate.

    The way back is the bundle's VJP, unless a plan says otherwise.

    Raises:
        TurnRefused: the bundle has no VJP, the cloud's loss maps stay unusable, or the encoder diverged.
    """
    learning = begin_learning(tools, state, optimizer)
    tools.send_train_labels()
    losses: list[float] = []
    for epoch in range(tools.turn.epochs):
        draw = tools.views.draw(epoch)
        for number, batch in enumerate(tools.batches(epoch)):
            seed = derive_seed(tools.turn.seed, "zeroth-order", epoch, number)
            linearised = linearise(tools, learning, batch, draw, plan, seed)
            asked = ask_at_perturbed_features(tools, batch, linearised.features_BCHW, estimator, seed, draw)
            gradient = linearised.pull_back(estimator.estimate(asked.maps_BMyx))
            learning.step(gradient, where=f"epoch {epoch}, batch {number}")
            losses.append(float(asked.maps_BMyx[:, 0].mean(dtype=np.float64)))
    mean_loss = float(np.mean(losses)) if losses else None
    return learning.state(), mean_loss


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A seeded query and its answer."""

    coded: EncodedTensor
    """The features as they were sent."""
    perturbations: Perturbations
    maps_BMyx: NDArray[np.float32]
    """float32 (B, 1 + K, y, x): the loss map at them, then each seed's difference."""


def ask_at_perturbed_features(
    tools: TurnTools,
    batch: tuple[int, ...],
    features_BCHW: NDArray[np.float32],
    estimator: FeatureEstimator,
    seed: int,
    draw: int | None,
) -> Asked:
    """Ask for loss maps of a batch, seen as `draw` says, at its features, and where the estimator moves them.

    Raises:
        TurnRefused: the features can't be sent, or the cloud's loss maps stay unusable.
    """
    map_size = estimator.map_size(features_BCHW.shape)
    perturbations = estimator.propose(features_BCHW, seed)
    coded = tools.code(features_BCHW)
    query = SeededQuery(
        **tools.header(),
        frames=batch,
        features=coded,
        seeds=perturbations.seeds,
        scale=pack_scale(perturbations.scale_C),
        two_sided=estimator.two_sided,
        map_size=map_size,
        draw=draw,
        block=perturbations.block,
    )
    maps_BMyx = ask_for_loss_maps(tools, query, map_size)
    return Asked(coded=coded, perturbations=perturbations, maps_BMyx=maps_BMyx)
