"""Every vehicle takes every vehicle's steps, told as seeds and losses: no weight crosses.

After DeComFL (arXiv 2405.15861) and FedKSeed (arXiv 2312.06353). A step of SPSA follows from the seed of its
directions and the losses that the cloud answered; taken in the same order from the same start, by float32
operations element by element, all vehicles come to the same φ to the bit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edge_client.encoder.bundle import EncoderSpec
from edge_client.encoder.subspaces import Vector
from edge_client.errors import TurnRefused
from edge_client.estimators.spsa import Spsa
from edge_client.learners.subspaces import Learning, begin_learning
from edge_client.optimizers import Nesterov
from edge_client.state import VehicleState
from edge_client.turn import TurnTools
from protocol.batches import batches_of_pass
from protocol.errors import SettingError
from protocol.messages import FetchSteps, Judged, SendEncoder, SpsaPlan, Steps
from protocol.plans.adaptation import Adaptation

_TAKEN = "sharing/steps"
"""In the vehicle's state: how many of the fleet's steps are in it."""


def catch_up(tools: TurnTools, state: VehicleState, plan: SpsaPlan) -> VehicleState:
    """Take the fleet's steps that this vehicle has not taken, a page at a time.

    Raises:
        TurnRefused: the plan or what the cloud sent does not fit, or the encoder diverged.
    """
    arrays = dict(state.optimizer)
    taken = int(arrays.pop(_TAKEN, np.zeros(1))[0])
    state = VehicleState(theta=state.theta, optimizer=arrays)
    try:
        estimator, optimizer = _of(plan)
        learning = begin_learning(tools, state, optimizer)
    except SettingError as error:
        raise TurnRefused(f"the fleet's zeroth-order settings don't fit: {error}") from error
    while True:
        [answer] = tools.ask([FetchSteps(**tools.header(), since=taken)])
        assert isinstance(answer, Steps)
        seeds, losses = _unpacked(answer, plan)
        _take(learning, estimator, seeds, losses, before_each=tools.attend)
        taken += len(seeds)
        if taken >= answer.total:
            break
        if len(seeds) == 0:
            raise TurnRefused(f"the cloud keeps back steps {taken} to {answer.total} of the fleet")
    tools.steps_taken = taken
    return learning.state()


def hand_in_steps(tools: TurnTools, begun: VehicleState, learnt: VehicleState) -> VehicleState:
    """Ask whether the turn's own steps are the fleet's from now on; if not, they are as if never taken."""
    turn = tools.turn
    [answer] = tools.ask([SendEncoder(**tools.header(), tensors=())])
    assert isinstance(answer, Judged)
    frames = len(tools.frames.splits["train"])
    own = turn.epochs * batches_of_pass(frames, turn.batch_size, turn.batches) if answer.taken else 0
    state = learnt if answer.taken else begun
    taken = np.array([tools.steps_taken + own], np.int64)
    return VehicleState(theta=state.theta, optimizer={**state.optimizer, _TAKEN: taken})


def theta_after(
    spec: EncoderSpec,
    theta_start: Vector,
    adaptation: Adaptation,
    plan: SpsaPlan,
    seeds: NDArray[np.uint64],
    losses: NDArray[np.float64],
) -> Vector:
    """θ float32 (n,) of a vehicle that has taken all these steps.

    Args:
        adaptation: its subspace is named.
        seeds: (steps,).
        losses: (steps, 2q).
    """
    estimator, optimizer = _of(plan)
    start = VehicleState(theta=theta_start, optimizer={})
    assert adaptation.subspace is not None
    learning = Learning.resume(start, adaptation.subspace, spec, optimizer)
    learning.hold(adaptation.anchor, theta_start)
    _take(learning, estimator, seeds, losses)
    return learning.theta


def _of(plan: SpsaPlan) -> tuple[Spsa, Nesterov]:
    return (
        Spsa(perturbation=plan.perturbation, queries=plan.queries),
        Nesterov(rate=plan.rate, momentum=plan.momentum),
    )


def _take(
    learning: Learning,
    estimator: Spsa,
    seeds: NDArray[np.uint64],
    losses: NDArray[np.float64],
    before_each: Callable[[], None] = lambda: None,
) -> None:
    for seed, answers in zip(seeds.tolist(), losses, strict=True):
        before_each()
        estimator.propose(learning.phi, seed)
        learning.step(estimator.estimate(answers), where="the fleet's steps")


def _unpacked(answer: Steps, plan: SpsaPlan) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
    """The seeds (n,) and losses (n, 2q) of a page.

    Raises:
        TurnRefused: they are not as long as each other, or a loss is not finite.
    """
    count, rest = divmod(len(answer.seeds), 8)
    if rest or len(answer.losses) != count * 2 * plan.queries * 8:
        raise TurnRefused(
            f"the fleet's steps don't fit: {len(answer.seeds)} bytes of seeds, {len(answer.losses)} of losses"
        )
    losses = np.frombuffer(answer.losses, "<f8").reshape(count, 2 * plan.queries)
    if not np.isfinite(losses).all():
        raise TurnRefused("the fleet's steps don't fit: a loss is not finite")
    return np.frombuffer(answer.seeds, "<u8").astype(np.uint64), losses.astype(np.float64)
