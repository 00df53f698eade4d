"""What the cloud makes of the average of its vehicles' weights: federated optimisers.

Source: Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2; FedAvgM: Hsu et al., 2019,
arXiv 1909.06335. The pseudo-gradient is Δ = w_global − average, so that plain averaging is a step of rate 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from protocol.plans.federated import FederatedPlan

Arrays = Mapping[str, NDArray[np.float64]]
"""Float64 arrays by parameter name."""


class ServerOptimizer(Protocol):
    """Turns pseudo-gradients into steps."""

    moments: dict[str, Arrays]
    """What it remembers from round to round, by name; to be saved and put back."""

    def step(self, gradient: Arrays) -> Arrays:
        """What to subtract from the global weights."""


class Averaging:
    """FedAvg: move the whole way (rate 1) or a part of it to the average."""

    def __init__(self, rate: float) -> None:
        self.moments: dict[str, Arrays] = {}
        self._rate = rate

    def step(self, gradient: Arrays) -> Arrays:
        return {name: self._rate * value for name, value in gradient.items()}


class Momentum:
    """FedAvgM: v ← β v + Δ, step η v, as `torch.optim.SGD` with momentum."""

    def __init__(self, rate: float, momentum: float) -> None:
        self.moments: dict[str, Arrays] = {}
        self._rate = rate
        self._momentum = momentum

    def step(self, gradient: Arrays) -> Arrays:
        before = self.moments.get("velocity", {})
        velocity = {name: self._momentum * before.get(name, 0.0) + value for name, value in gradient.items()}
        self.moments = {"velocity": velocity}
        return {name: self._rate * value for name, value in velocity.items()}


class Adam:
    """FedAdam: m ← β₁ m + (1 − β₁) Δ, v ← β₂ v + (1 − β₂) Δ², step η m / (√v + τ).

    Without bias correction, as in the paper.
    """

    def __init__(self, rate: float, momentum: float, beta2: float, adaptivity: float) -> None:
        self.moments: dict[str, Arrays] = {}
        self._rate = rate
        self._beta1 = momentum
        self._beta2 = beta2
        self._adaptivity = adaptivity

    def step(self, gradient: Arrays) -> Arrays:
        first, second = self.moments.get("first", {}), self.moments.get("second", {})
        m = {
            name: self._beta1 * first.get(name, 0.0) + (1 - self._beta1) * value
            for name, value in gradient.items()
        }
        v = {
            name: self._beta2 * second.get(name, 0.0) + (1 - self._beta2) * value**2
            for name, value in gradient.items()
        }
        self.moments = {"first": m, "second": v}
        return {name: self._rate * m[name] / (np.sqrt(v[name]) + self._adaptivity) for name in m}


_BUILDERS: dict[str, Callable[[FederatedPlan], ServerOptimizer]] = {
    "average": lambda config: Averaging(config.server_rate),
    "momentum": lambda config: Momentum(config.server_rate, config.server_momentum),
    "adam": lambda config: Adam(
        config.server_rate, config.server_momentum, config.server_beta2, config.server_adaptivity
    ),
}


def build_server_optimizer(config: FederatedPlan) -> ServerOptimizer:
    """The optimiser that `config.server_optimizer` names."""
    return _BUILDERS[config.server_optimizer](config)
