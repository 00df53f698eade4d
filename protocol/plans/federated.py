"""Federated averaging: weights go down, are trained by vehicles, and come up."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from protocol.base import Answer, Index, Request, Split, Step
from protocol.codec.weights import WeightTensor
from protocol.errors import SettingError
from protocol.plans.checks import Plan


class FederatedPlan(Plan, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="federated"):
    """`fedavg` and `fedprox`: fetch the global weights, score them, train them, send them back.

    Rate, its schedule, weight decay, epochs and batch size are those of `first_order`. A turn of no epochs is
    for the scores alone."""

    section = "federated"

    client_fraction: float = 1.0
    """Share of the vehicles that is drawn for each round, one at least."""
    optimizer: str = "adamw"
    """Of the vehicles: `adamw` or `sgd`; it starts anew in each round."""
    momentum: float = 0.0
    """Of `sgd`."""
    proximal: float = 0.01
    """Of `fedprox`: μ (Li et al., MLSys 2020, arXiv 1812.06127); μ/2 ‖w − w_global‖² is added to the loss.
    The paper chooses among 0.001, 0.01, 0.1 and 1. `fedavg` has no such term: its turns carry 0."""
    statistics: str = "average"
    """BatchNorm statistics: `average` them like weights, keep them `local` on the vehicle (SiloBN, Andreux et
    al., 2020), or leave them `frozen` as they are at the start and normalise with them."""
    aggregate: str = "average"
    """How the cloud makes one of what vehicles send: `average` (by train frames), or, where some may lie,
    `median`, `trimmed-mean` or `krum` (arXiv 1803.01498, 1703.02757)."""
    liars: int = 1
    """f, of `trimmed-mean` and `krum`: vehicles that may lie, fewer than half of a round's."""
    norm_bound: float | None = None
    """How far a vehicle may move the weights in a round, in medians of all: what goes farther is shortened
    (arXiv 1911.07963); None = as far as it likes."""
    server_optimizer: str = "average"
    """What the cloud makes of the average: `average`, `momentum` (FedAvgM) or `adam` (FedAdam)."""
    server_rate: float = 1.0
    """Of the server's optimiser; 1 = all the way to the average. For `adam` 0.01 is a good start."""
    server_momentum: float = 0.9
    """β of `momentum`, β₁ of `adam`."""
    server_beta2: float = 0.99
    """β₂ of `adam`."""
    server_adaptivity: float = 1e-3
    """τ of `adam`."""
    patience_rounds: int | None = None
    """Training ends when the mean validation mIoU has not risen for so many rounds; None = never early."""
    deadline_s: float | None = 600.0
    """Longest that a vehicle may take for a turn, restarts included, before the round goes on without it;
    None = the round waits for everyone."""

    def __post_init__(self) -> None:
        if not 0 < self.client_fraction <= 1:
            raise SettingError(
                f"{self.key('client_fraction')} must be above 0 and at most 1, got {self.client_fraction}"
            )
        self._one_of(("adamw", "sgd"), "optimizer")
        self._one_of(("average", "local", "frozen"), "statistics")
        self._one_of(("average", "median", "trimmed-mean", "krum"), "aggregate")
        self._one_of(("average", "momentum", "adam"), "server_optimizer")
        self._share_below_one("momentum", "server_momentum", "server_beta2")
        self._at_least(0, "proximal")
        self._above(0, "server_rate", "server_adaptivity")
        self._at_least(1, "liars", "patience_rounds")
        if self.norm_bound is not None and self.norm_bound < 1:
            raise SettingError(
                f"{self.key('norm_bound')} must be at least 1, or null, got {self.norm_bound}: "
                "half of the vehicles go farther than the median"
            )
        self._above(0, "deadline_s")


def drawn_count(plan: FederatedPlan, vehicles: int) -> int:
    """How many of the fleet's vehicles are drawn for a round."""
    return max(1, round(plan.client_fraction * vehicles))


class FetchWeights(Request, frozen=True, array_like=True, kw_only=True, tag="fetch"):
    """Which weights does this turn start from? Answered by `Weights`."""

    answered_by = "Weights"


class Weights(Answer, frozen=True, array_like=True, kw_only=True, tag="weights"):
    """The global weights that the turn starts from."""

    tensors: tuple[WeightTensor, ...]


class Update(Request, frozen=True, array_like=True, kw_only=True, tag="update"):
    """The weights after the turn's epochs, once a turn; answered by `Ack`."""

    samples: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    """Train frames that they were trained on: their weight in the average."""
    loss: float
    """Mean training loss of the last epoch."""
    tensors: tuple[WeightTensor, ...]


class SplitScores(Request, frozen=True, array_like=True, kw_only=True, tag="scores"):
    """How good the fetched weights are on the vehicle's own frames; answered by `Ack`."""

    split: Split
    frames: Index
    """How many were scored."""
    counts: tuple[tuple[Step, ...], ...]
    """Pixels by true class (rows) and predicted class (columns, the last: none); void is not counted."""
