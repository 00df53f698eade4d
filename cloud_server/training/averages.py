"""What one set of weights is made of those of several vehicles, some of which may lie.

Sources: McMahan et al., AISTATS 2017 (the weighted average); Yin et al., ICML 2018, arXiv 1803.01498 (median
and trimmed mean of a coordinate); Blanchard et al., NeurIPS 2017, arXiv 1703.02757 (Krum, here Multi-Krum);
Sun et al., 2019, arXiv 1911.07963 (bounded norms).

Legend: w_k what vehicle k sends, n_k its train frames; w_r what the round began with; d_k = w_k − w_r.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from protocol.codec.weights import WeightArrays
from protocol.plans.federated import FederatedPlan

Arrays = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class LocalUpdate:
    """What one vehicle made of the global weights."""

    samples: int
    loss: float
    weights: WeightArrays


@dataclass(frozen=True, kw_only=True)
class Average:
    """What a round's updates come to."""

    weights: Arrays
    """Float64, by name."""
    left_out: tuple[str, ...] = ()
    """Vehicles whose update does not count at all."""
    shortened: tuple[str, ...] = ()
    """Vehicles whose update counts as a shorter one."""


def average(
    updates: Mapping[str, LocalUpdate], now: Mapping[str, NDArray[np.float32]], plan: FederatedPlan
) -> Average:
    """One set of weights of the vehicles' updates, as `plan.aggregate` and `plan.norm_bound` say.

    Args:
        updates: by vehicle, in the fleet's order, at least one.
        now: w_r, by name.
    """
    updates, shortened = _bounded(updates, now, plan.norm_bound)
    liars = min(plan.liars, (len(updates) - 1) // 2)
    if plan.aggregate == "median":
        return Average(weights=_trimmed(updates, (len(updates) - 1) // 2), shortened=shortened)
    if plan.aggregate == "trimmed-mean":
        return Average(weights=_trimmed(updates, liars), shortened=shortened)
    left_out = _far_ones(updates, liars) if plan.aggregate == "krum" else ()
    kept = [update for vehicle, update in updates.items() if vehicle not in left_out]
    return Average(weights=weighted_average(kept), left_out=left_out, shortened=shortened)


def weighted_average(updates: Sequence[LocalUpdate]) -> Arrays:
    """Σ n_k w_k / Σ n_k of each tensor."""
    total = sum(update.samples for update in updates)
    return {
        name: np.sum([update.weights[name].astype(np.float64) * update.samples for update in updates], axis=0)
        / total
        for name in updates[0].weights
    }


def negative_variance(weights: Mapping[str, NDArray[np.float32]]) -> str:
    """The name of a BatchNorm variance that can't be one; empty where there is none."""
    wrong = (name for name, array in weights.items() if name.endswith("running_var") and (array < 0).any())
    return next(wrong, "")


def _bounded(
    updates: Mapping[str, LocalUpdate], now: Mapping[str, NDArray[np.float32]], bound: float | None
) -> tuple[Mapping[str, LocalUpdate], tuple[str, ...]]:
    """d_k, where it is longer than `bound` times the median of ‖d_k‖, shortened to that; and whose were."""
    if bound is None or len(updates) == 1:
        return updates, ()
    lengths = {
        vehicle: math.sqrt(sum(float(np.sum(_moved(update, now, name) ** 2)) for name in now))
        for vehicle, update in updates.items()
    }
    most = bound * float(np.median(list(lengths.values())))
    shortened = tuple(vehicle for vehicle, length in lengths.items() if length > most)
    return {
        vehicle: _scaled(update, now, most / lengths[vehicle]) if vehicle in shortened else update
        for vehicle, update in updates.items()
    }, shortened


def _moved(update: LocalUpdate, now: Mapping[str, NDArray[np.float32]], name: str) -> NDArray[np.float64]:
    return update.weights[name].astype(np.float64) - now[name].astype(np.float64)


def _scaled(update: LocalUpdate, now: Mapping[str, NDArray[np.float32]], share: float) -> LocalUpdate:
    return replace(
        update,
        weights={name: (now[name] + share * _moved(update, now, name)).astype(np.float32) for name in now},
    )


def _trimmed(updates: Mapping[str, LocalUpdate], count: int) -> Arrays:
    """The mean of each number without its `count` highest and lowest; vehicles count alike."""
    sent = list(updates.values())
    inner = slice(count, len(sent) - count)
    return {
        name: np.sort([update.weights[name].astype(np.float64) for update in sent], axis=0)[inner].mean(
            axis=0
        )
        for name in sent[0].weights
    }


def _far_ones(updates: Mapping[str, LocalUpdate], liars: int) -> tuple[str, ...]:
    """The `liars` vehicles whose weights are farthest from those of their n − f − 2 nearest neighbours."""
    if liars == 0:
        return ()
    neighbours = max(1, len(updates) - liars - 2)
    scores = {
        vehicle: sum(
            sorted(
                sum(float(np.sum(_moved(update, other.weights, name) ** 2)) for name in update.weights)
                for another, other in updates.items()
                if another != vehicle
            )[:neighbours]
        )
        for vehicle, update in updates.items()
    }
    farthest = set(sorted(updates, key=scores.__getitem__)[len(updates) - liars :])
    return tuple(vehicle for vehicle in updates if vehicle in farthest)
