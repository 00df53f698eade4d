"""Turns that begin at the fleet's encoder: it is fetched, learnt on, and sent.

Legend: θ all encoder parameters, float32 (n,), θ₀ those of the bundle; φ what of them learns;
d = φ − φ_start, float32 (m,), which is what crosses.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edge_client.encoder.subspaces import Subspace, subspace_of
from edge_client.errors import TurnRefused
from edge_client.learners.local_loss import HEAD_PARAMETERS
from edge_client.learners.subspaces import displaced, displacement
from edge_client.state import VehicleState
from edge_client.turn import TurnTools
from protocol.codec.weights import WeightsError, WeightTensor, pack, unpack
from protocol.errors import SettingError
from protocol.messages import FetchEncoder, Judged, SendEncoder, SharedEncoder
from protocol.plans.sharing import HEAD, PHI, digest_of


class FetchedEncoder:
    """What was fetched last, for as long as this process lives: it need not cross twice."""

    def __init__(self) -> None:
        self.tensors: tuple[WeightTensor, ...] = ()

    @property
    def digest(self) -> bytes:
        """What the cloud knows it by; empty = nothing."""
        return digest_of(self.tensors)


def take_over(tools: TurnTools, state: VehicleState, fetched: FetchedEncoder) -> VehicleState:
    """Begin a turn at the fleet's encoder: the vehicle's state with it, and `tools.displacement` set.

    Where nothing is shared yet, the state as it is. Optimizers keep their moments.

    Raises:
        TurnRefused: what the cloud sent does not fit the encoder, or the local head.
    """
    [answer] = tools.ask([FetchEncoder(**tools.header(), known=fetched.digest)])
    assert isinstance(answer, SharedEncoder)
    if answer.tensors is not None:
        fetched.tensors = answer.tensors
    if not fetched.tensors:
        return state
    subspace = _subspace(tools)
    expected: dict[str, tuple[int, ...]] = {PHI: (subspace.size,)}
    shares_head = tools.turn.sharing is not None and tools.turn.sharing.head
    if shares_head:
        expected[HEAD] = _head_start(tools).shape
    try:
        shared = unpack(fetched.tensors, expected)
    except WeightsError as error:
        raise TurnRefused(f"the fleet's encoder does not fit this vehicle's: {error}") from error
    tools.displacement = shared[PHI]
    state = displaced(state, subspace, shared[PHI])
    if shares_head:
        state = replace(state, optimizer={**state.optimizer, HEAD_PARAMETERS: shared[HEAD]})
    return state


def hand_in(tools: TurnTools, state: VehicleState) -> VehicleState:
    """Send what the turn has made of the fleet's encoder; the state as everyone will know it.

    Where it is left out, the vehicle is back where it began the turn, its optimizers apart.
    """
    subspace = _subspace(tools)
    moved = displacement(state, subspace)
    tensors = {PHI: moved}
    if tools.turn.sharing is not None and tools.turn.sharing.head:
        tensors[HEAD] = state.optimizer[HEAD_PARAMETERS].astype(np.float32)
    [answer] = tools.ask([SendEncoder(**tools.header(), tensors=pack(tensors))])
    assert isinstance(answer, Judged)
    if not answer.taken:
        start = tools.displacement
        moved = np.zeros(subspace.size, np.float32) if start is None else start
    return displaced(state, subspace, moved)


def _subspace(tools: TurnTools) -> Subspace:
    """What the turn learns of the encoder, around the bundle's θ₀: where all vehicles began."""
    spec = tools.encoder.spec
    adaptation = tools.turn.adaptation.of_encoder(spec.subspace)
    assert adaptation.subspace is not None
    try:
        return subspace_of(adaptation.subspace, spec, tools.encoder.theta0)
    except SettingError as error:
        raise TurnRefused(str(error)) from error


def _head_start(tools: TurnTools) -> NDArray[np.float32]:
    if tools.local_head is None:
        raise TurnRefused("this vehicle has no local head, which this run shares")
    return tools.local_head.initial
