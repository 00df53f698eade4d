"""BlackFed's SPSA-GC: how a vehicle learns from losses at other weights, and what is said for it."""

from __future__ import annotations

from protocol.base import Answer, Draw, Index, Request
from protocol.codec.tensor import EncodedTensor
from protocol.noise import derive_seed
from protocol.plans.checks import EstimatorPlan


class SpsaPlan(EstimatorPlan, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="spsa"):
    """SPSA with gradient correction, BlackFed's estimator (arXiv 2410.24181, section 3.2)."""

    section = "spsa"
    estimator = "spsa-gc"
    steps_by_seeds = True

    perturbation: float = 0.005
    """c: how far the weights are moved for a query."""
    queries: int = 2
    """q: two-sided queries averaged for one update."""
    rate: float = 1e-4
    """Step size of the update."""
    momentum: float = 0.9
    """β of the Nesterov momentum, kept across epochs and turns."""

    def __post_init__(self) -> None:
        self._above(0, "perturbation", "rate")
        self._at_least(1, "queries")
        self._share_below_one("momentum")

    @property
    def answers_per_frame(self) -> int:
        return 2 * self.queries

    @property
    def needs_way_back(self) -> bool:
        return False


def step_seed(turn_seed: int, epoch: int, number: int) -> int:
    """What the directions of a turn's step are drawn from: of one batch of one pass."""
    return derive_seed(turn_seed, "zeroth-order", epoch, number)


class Query(Request, frozen=True, array_like=True, kw_only=True, tag="query"):
    """What is the loss at these features? Answered by `Feedback`; changes nothing in the cloud."""

    answered_by = "Feedback"

    frames: tuple[Index, ...]
    features: EncodedTensor
    draw: Draw | None = None
    """By which draw of the augmentation the frames were seen; None = as they are."""


class Feedback(Answer, frozen=True, array_like=True, kw_only=True, tag="feedback"):
    """The answer to a query: losses, never gradients."""

    losses: tuple[float, ...]
