"""Contributions that began at older weights: what they are to the present ones.

Source: Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation" (FedBuff), AISTATS 2022,
arXiv 2106.06639, algorithm 1 and its staleness weights.

Legend: w_k what vehicle k sends, w_b what it began with, w_r the present weights; τ how often the cloud has
moved from w_b to w_r; s(τ) = 1 / √(1 + τ).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from cloud_server.training.averages import LocalUpdate
from protocol.codec.weights import WeightArrays


def staleness_weight(behind: int) -> float:
    """s(τ)."""
    return float((1 + behind) ** -0.5)


def caught_up(
    update: LocalUpdate, begun: WeightArrays, now: WeightArrays, behind: int, statistics: Collection[str]
) -> LocalUpdate:
    """The update as if it had begun at the present weights: w_r + s(τ) (w_k − w_b).

    BatchNorm statistics, which are no sums of steps and whose variances must stay above 0, go s(τ) of the way
    from the present ones: w_r + s(τ) (w_k − w_r).
    """
    share = staleness_weight(behind)
    weights = {}
    for name, array in update.weights.items():
        present = now[name].astype(np.float64)
        base = present if name in statistics else begun[name].astype(np.float64)
        weights[name] = (present + share * (array.astype(np.float64) - base)).astype(np.float32)
    return replace(update, weights=weights)
