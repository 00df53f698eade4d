"""How a vehicle learns in a turn: one file and one line in the table for each kind of plan."""

from __future__ import annotations

from collections.abc import Callable

from edge_client.learners.activation import learn_from_loss_maps
from edge_client.learners.cse_fsl import learn_uploading
from edge_client.learners.federated import learn_with_weights
from edge_client.learners.fsl_sage import learn_aligned
from edge_client.learners.local_loss import learn_from_local_loss
from edge_client.learners.own import learn_as_allowed
from edge_client.learners.region_spsa import learn_from_regions
from edge_client.learners.surrogate import learn_from_surrogate
from edge_client.learners.white_box import learn_from_gradients
from edge_client.learners.zeroth_order import learn_from_losses
from edge_client.state import VehicleState
from edge_client.turn import TurnTools
from protocol.messages import (
    ActivationPlan,
    CseFslPlan,
    FederatedPlan,
    FslSagePlan,
    LocalLossPlan,
    OwnPlan,
    RegionSpsaPlan,
    SpsaPlan,
    SurrogatePlan,
    Turn,
    WhiteBoxPlan,
)

Learn = Callable[[TurnTools, VehicleState], tuple[VehicleState, float | None]]
"""(the turn's tools, the state before) → (the state after, the mean loss on the way, None where
nothing was learnt)."""


def takes_labels(turn: Turn) -> bool:
    """Whether anyone learns from the labels of train frames in a turn: the vehicle, or the cloud after it."""
    return turn.follows_labels and ("train" in turn.uploads or turn.learner is not None)


LEARNERS: dict[type, Learn] = {
    SpsaPlan: learn_from_losses,
    ActivationPlan: learn_from_loss_maps,
    SurrogatePlan: learn_from_surrogate,
    RegionSpsaPlan: learn_from_regions,
    WhiteBoxPlan: learn_from_gradients,
    FederatedPlan: learn_with_weights,
    CseFslPlan: learn_uploading,
    FslSagePlan: learn_aligned,
    LocalLossPlan: learn_from_local_loss,
    OwnPlan: learn_as_allowed,
}
"""By the type of `Turn.learner`."""
