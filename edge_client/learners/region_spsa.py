"""Learning from forward passes: other weights in each region of each frame, and one loss map of them all.

Legend: B frames of a batch, C channels, H W rows and columns, K moves; θ all encoder parameters, φ those that
learn.
"""

from __future__ import annotations

import numpy as np

from edge_client.errors import TurnRefused
from edge_client.estimators.region_spsa import RegionSpsa
from edge_client.learners.loss_maps import ask_for_loss_maps
from edge_client.learners.subspaces import begin_learning
from edge_client.learners.way_back import forward_passes
from edge_client.optimizers import Adam
from edge_client.state import VehicleState
from edge_client.turn import TurnTools
from protocol.errors import SettingError
from protocol.messages import MovedQuery, RegionSpsaPlan
from protocol.noise import derive_seed


def learn_from_regions(tools: TurnTools, state: VehicleState) -> tuple[VehicleState, float | None]:
    """One moved query a batch, one step of Adam from its estimate; no way back through the encoder.

    Raises:
        TurnRefused: the plan's settings don't fit, the cloud's loss maps stay unusable, or the encoder
            diverged.
    """
    plan = tools.turn.learner
    assert isinstance(plan, RegionSpsaPlan)
    try:
        estimator = estimator_of(plan)
        map_size = estimator.map_size(tools.encoder.spec.feature_shape)
        optimizer = Adam(plan.rate)
    except SettingError as error:
        raise TurnRefused(f"the turn's region-spsa settings don't fit: {error}") from error
    learning = begin_learning(tools, state, optimizer)
    tools.send_train_labels()
    losses: list[float] = []
    for epoch in range(tools.turn.epochs):
        draw = tools.views.draw(epoch)
        for number, batch in enumerate(tools.batches(epoch)):
            image_BHWC = tools.views.images(batch, draw)
            features_BCHW = tools.encoder.forward(learning.theta, image_BHWC)
            seed = derive_seed(tools.turn.seed, "zeroth-order", epoch, number)
            forward = forward_passes(tools, learning, image_BHWC)
            moves_KBCHW = estimator.propose(learning.phi, features_BCHW, forward, seed)
            query = MovedQuery(
                **tools.header(),
                frames=batch,
                features=tools.code(features_BCHW),
                moves=tuple(tools.code(move_BCHW, bits=plan.move_bits) for move_BCHW in moves_KBCHW),
                map_size=map_size,
                draw=draw,
            )
            maps_BMyx = ask_for_loss_maps(tools, query, map_size)
            learning.step(estimator.estimate(maps_BMyx), where=f"epoch {epoch}, batch {number}")
            losses.append(float(maps_BMyx[:, 0].mean(dtype=np.float64)))
    return learning.state(), float(np.mean(losses)) if losses else None


def estimator_of(plan: RegionSpsaPlan) -> RegionSpsa:
    """What asks the questions of a plan, and reads the answers.

    Raises:
        SettingError: a setting is out of its range.
    """
    return RegionSpsa(
        perturbation=plan.perturbation,
        region=plan.region,
        moves=plan.moves,
        map_stride=plan.map_stride,
        margin=plan.margin,
    )
