"""Turns that begin at the fleet's encoder, whichever way it is shared."""

from __future__ import annotations

from edge_client.learners.shared_encoder import FetchedEncoder, hand_in, take_over
from edge_client.learners.shared_steps import catch_up, hand_in_steps
from edge_client.state import VehicleState
from edge_client.turn import TurnTools


def begin_shared(tools: TurnTools, state: VehicleState, fetched: FetchedEncoder) -> VehicleState:
    """The vehicle's state with the fleet's encoder, before it learns or uploads.

    Raises:
        TurnRefused: what the cloud sent does not fit.
    """
    sharing = tools.turn.sharing
    if sharing is not None and sharing.steps is not None:
        return catch_up(tools, state, sharing.steps)
    return take_over(tools, state, fetched)


def end_shared(tools: TurnTools, begun: VehicleState, learnt: VehicleState) -> VehicleState:
    """Give what was learnt to the fleet; the state that the vehicle keeps."""
    if tools.turn.sharing is not None and tools.turn.sharing.steps is not None:
        return hand_in_steps(tools, begun, learnt)
    return hand_in(tools, learnt)
