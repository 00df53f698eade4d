"""Federated averaging: weights go down, are trained by vehicles, and come up."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from protocol.base import EPOCHS_LIMIT, Index, Message, Split, Step, Turned
from protocol.codec.weights import WeightTensor


class FedAvgPlan(Message, frozen=True, array_like=True, kw_only=True, tag="fedavg"):
    """Federated averaging: fetch the global weights, score them, train them, send them back.

    A turn of no epochs is for the scores alone."""

    optimizer: Annotated[str, Meta(pattern="^(sgd|adamw)$")]
    """Made anew in each turn."""
    rates: Annotated[tuple[float, ...], Meta(max_length=EPOCHS_LIMIT)]
    """Step size in each of the turn's epochs."""
    momentum: float
    """Of `sgd`."""
    weight_decay: float
    proximal: float
    """μ of FedProx (Li et al., MLSys 2020): μ/2 ‖w − w_global‖² is added to the loss."""
    statistics: Annotated[str, Meta(pattern="^(average|local|frozen)$")]
    """BatchNorm statistics: averaged like weights, kept on the vehicle (SiloBN), or never changed."""
    scores: tuple[Split, ...]
    """Splits on which the fetched weights are scored, before training."""
    save_predictions: bool
    """Whether the vehicle writes what it predicts on its own test frames."""


class FetchWeights(Turned, frozen=True, array_like=True, kw_only=True, tag="fetch"):
    """Which weights does this turn start from? Answered by `Weights`."""


class Weights(Turned, frozen=True, array_like=True, kw_only=True, tag="weights"):
    """The global weights that the turn starts from."""

    tensors: tuple[WeightTensor, ...]


class Update(Turned, frozen=True, array_like=True, kw_only=True, tag="update"):
    """The weights after the turn's epochs, once a turn; answered by `Ack`."""

    samples: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    """Train frames that they were trained on: their weight in the average."""
    loss: float
    """Mean training loss of the last epoch."""
    tensors: tuple[WeightTensor, ...]


class SplitScores(Turned, frozen=True, array_like=True, kw_only=True, tag="scores"):
    """How good the fetched weights are on the vehicle's own frames; answered by `Ack`."""

    split: Split
    frames: Index
    """How many were scored."""
    counts: tuple[tuple[Step, ...], ...]
    """Pixels by true class (rows) and predicted class (columns, the last: none); void is not counted."""
