"""What learners of any subspace of θ share: where φ stands, its optimizer, and both in the vehicle's state.

θ float32 (n,) all encoder parameters; φ float32 (m,) those that learn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_client.encoder.bundle import EncoderSpec
from edge_client.encoder.subspaces import Subspace, Vector, subspace_of
from edge_client.errors import StateError, TurnRefused
from edge_client.optimizers import Optimizer
from edge_client.state import VehicleState
from edge_client.turn import TurnTools
from protocol.errors import SettingError

_PHI, _ORIGIN = "subspace/phi", "subspace/origin"
"""In the vehicle's state, beside the optimizer's arrays: φ, and the θ that it is relative to."""


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """The penalty λ/2·‖φ − φ_start‖² on the distance to the start (L2-SP, Li et al., arXiv 1802.01483).

    Its step is taken after the optimizer's, and implicitly: it is stable for every λ, and Adam does not
    rescale it (as AdamW's decay, arXiv 1711.05101).
    """

    strength: float
    """λ, at least 0."""
    phi_start: Vector

    def pull(self, phi: Vector, pace: float) -> Vector:
        """φ_start + (φ − φ_start) / (1 + a·λ), a being the optimizer's `pace`; φ itself where λ is 0."""
        if self.strength == 0:
            return phi
        share = np.float32(1 / (1 + pace * self.strength))
        pulled: Vector = self.phi_start + share * (phi - self.phi_start)
        return pulled


@dataclass(kw_only=True)
class Learning:
    """One turn's way of φ."""

    subspace: Subspace
    optimizer: Optimizer
    phi: Vector
    origin: Vector | None
    """The θ that φ = 0 stands for; None where φ is θ itself."""
    remedy: str
    """What to do where it diverges."""
    anchor: Anchor | None = None

    @classmethod
    def resume(
        cls,
        state: VehicleState,
        name: str,
        spec: EncoderSpec,
        optimizer: Optimizer,
        *,
        rate_name: str = "zeroth-order rate",
    ) -> Learning:
        """Go on from a vehicle's state; the first turn on a subspace begins at the θ that it finds.

        `rate_name` is what users know the optimizer's rate by.

        Raises:
            TurnRefused: the state was left by another way of learning, or the encoder has no such subspace.
        """
        arrays = {key: array.astype(np.float32) for key, array in state.optimizer.items()}
        phi, origin = arrays.pop(_PHI, None), arrays.pop(_ORIGIN, None)
        if name != "all" and origin is None and not arrays:
            origin = state.theta  # the first turn
        try:
            subspace = subspace_of(name, spec, state.theta if origin is None else origin)
            optimizer.load_state_arrays(arrays)
        except SettingError as error:
            raise TurnRefused(str(error)) from error
        except StateError as error:
            raise TurnRefused(f"the vehicle's state is of another way of learning: {error}") from error
        if phi is None and (name == "all") == (origin is None):
            phi = subspace.start()
        if phi is None or phi.shape != (subspace.size,):
            raise TurnRefused("the vehicle's state is of another way of learning; start a new run")
        remedy = f"lower the {rate_name} (now {optimizer.rate:g})"
        return cls(subspace=subspace, optimizer=optimizer, phi=phi, origin=origin, remedy=remedy)

    @property
    def theta(self) -> Vector:
        """θ(φ)."""
        return self.subspace.theta_of(self.phi)

    def hold(self, strength: float, theta_start: Vector) -> None:
        """Penalise, from now on, the distance to the start: λ and the θ float32 (n,) of the bundle."""
        start = theta_start if self.origin is None else self.subspace.start()
        self.anchor = Anchor(strength=strength, phi_start=start)

    def step(self, gradient: Vector, *, where: str) -> None:
        """Let the optimizer move φ along ∂L/∂φ float32 (m,), then the anchor, if any, pull it back.

        Raises:
            TurnRefused: φ is no longer finite; `where` says when.
        """
        self.phi = self.optimizer.step(self.phi, gradient)
        if self.anchor is not None:
            self.phi = self.anchor.pull(self.phi, self.optimizer.pace)
        if not np.isfinite(self.phi).all():
            raise TurnRefused(f"the encoder diverged in {where}; {self.remedy}")

    def state(self) -> VehicleState:
        """What the next turn starts from."""
        film = {} if self.origin is None else {_PHI: self.phi, _ORIGIN: self.origin}
        return VehicleState(theta=self.theta, optimizer={**self.optimizer.state_arrays(), **film})


def begin_learning(
    tools: TurnTools,
    state: VehicleState,
    optimizer: Optimizer,
    *,
    rate_name: str = "zeroth-order rate",
    goes_on: bool = False,
) -> Learning:
    """A turn's start: on its subspace from where the vehicle stands, or else the fleet does, held as the turn
    says. `goes_on`: the state is of the middle of the turn.

    Raises:
        TurnRefused: see `Learning.resume`.
    """
    spec = tools.encoder.spec
    adaptation = tools.turn.adaptation.of_encoder(spec.subspace)
    assert adaptation.subspace is not None
    moved = None if goes_on else tools.displacement
    if moved is not None:
        state = VehicleState(theta=tools.encoder.theta0, optimizer=state.optimizer)
    learning = Learning.resume(state, adaptation.subspace, spec, optimizer, rate_name=rate_name)
    if moved is not None:
        learning.phi = learning.subspace.start() + moved
    learning.hold(adaptation.anchor, tools.encoder.theta0)
    return learning


def displacement(state: VehicleState, subspace: Subspace) -> Vector:
    """φ − φ_start float32 (m,) of a vehicle that has learnt on a subspace around the bundle's θ."""
    if subspace.name == "all":
        return state.theta - subspace.start()
    [phi] = (array for name, array in state.optimizer.items() if name.endswith(_PHI))
    return phi.astype(np.float32)


def displaced(state: VehicleState, subspace: Subspace, moved: Vector) -> VehicleState:
    """The state of a vehicle that stands at φ_start + `moved`, whatever it has learnt."""
    phi = subspace.start() + moved
    arrays = {name: phi if name.endswith(_PHI) else array for name, array in state.optimizer.items()}
    return VehicleState(theta=subspace.theta_of(phi), optimizer=arrays)
