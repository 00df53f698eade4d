"""First-order update rules on a flat float32 θ, fed with gradient estimates. Plain numpy, no schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_client.errors import StateError
from protocol.errors import SettingError

Arrays = dict[str, NDArray[np.float32]]


class Optimizer(Protocol):
    """One update rule with its state. `rate` may be set between steps."""

    rate: float

    @property
    def pace(self) -> float:
        """How far a lasting gradient of 1 moves each element in a step."""
        ...

    def step(self, theta: NDArray[np.float32], gradient: NDArray[np.float32]) -> NDArray[np.float32]:
        """The next θ float32 (n,); the arguments stay as they are."""
        ...

    def state_arrays(self) -> Arrays:
        """Copies of the state, for a snapshot; empty before the first step."""
        ...

    def load_state_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from what `state_arrays` returned.

        Raises:
            StateError: arrays of another optimizer.
        """
        ...


class Nesterov:
    """Gradient descent with Nesterov momentum: the gradient correction of SPSA-GC.

    m ← β·m + ĝ;  θ ← θ − a·(ĝ + β·m).  As in BlackVIP (arXiv 2303.14773, section 3.2 and its published
    trainer) and BlackFed; the same as `torch.optim.SGD(nesterov=True)`.

    Args:
        rate: a, positive.
        momentum: β, in [0, 1).

    Raises:
        SettingError: a value out of its range.
    """

    def __init__(self, rate: float, momentum: float = 0.9) -> None:
        self.rate = _checked_rate(rate)
        self.momentum = _checked_decay("momentum", momentum)
        self._velocity: NDArray[np.float32] | None = None

    @property
    def pace(self) -> float:
        """See `Optimizer.pace`."""
        return self.rate / (1 - self.momentum)

    def step(self, theta: NDArray[np.float32], gradient: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Optimizer.step`."""
        decay = np.float32(self.momentum)
        if self._velocity is None:
            self._velocity = np.zeros_like(theta)
        self._velocity = decay * self._velocity + gradient
        correction: NDArray[np.float32] = gradient + decay * self._velocity
        return theta - np.float32(self.rate) * correction

    def state_arrays(self) -> Arrays:
        """See `Optimizer.state_arrays`."""
        return {} if self._velocity is None else {"velocity": self._velocity.copy()}

    def load_state_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """See `Optimizer.load_state_arrays`."""
        _check_names(arrays, "velocity")
        self._velocity = arrays["velocity"].astype(np.float32) if arrays else None


class Adam:
    """Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1), the same as `torch.optim.Adam`.

    Args:
        rate: a, positive.
        mean_decay: β₁, in [0, 1).
        square_decay: β₂, in [0, 1).
        epsilon: added to the root of the mean square, positive.

    Raises:
        SettingError: a value out of its range.
    """

    def __init__(
        self, rate: float, *, mean_decay: float = 0.9, square_decay: float = 0.999, epsilon: float = 1e-8
    ) -> None:
        self.rate = _checked_rate(rate)
        self.mean_decay = _checked_decay("mean decay", mean_decay)
        self.square_decay = _checked_decay("square decay", square_decay)
        if not (math.isfinite(epsilon) and epsilon > 0):
            raise SettingError(f"epsilon must be positive, got {epsilon}")
        self.epsilon = epsilon
        self._mean: NDArray[np.float32] | None = None
        self._square: NDArray[np.float32] | None = None
        self._steps = 0

    @property
    def pace(self) -> float:
        """See `Optimizer.pace`."""
        return self.rate

    def step(self, theta: NDArray[np.float32], gradient: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Optimizer.step`."""
        if self._mean is None or self._square is None:
            self._mean, self._square = np.zeros_like(theta), np.zeros_like(theta)
        self._steps += 1
        self._mean = self._mean + np.float32(1 - self.mean_decay) * (gradient - self._mean)
        self._square = (
            np.float32(self.square_decay) * self._square + np.float32(1 - self.square_decay) * gradient**2
        )
        mean_bias = 1 - self.mean_decay**self._steps
        square_bias = 1 - self.square_decay**self._steps
        root = np.sqrt(self._square) / np.float32(math.sqrt(square_bias)) + np.float32(self.epsilon)
        change = np.float32(self.rate / mean_bias) * self._mean / root
        return theta - change.astype(np.float32, copy=False)

    def state_arrays(self) -> Arrays:
        """See `Optimizer.state_arrays`."""
        if self._mean is None or self._square is None:
            return {}
        # float32 counts exactly up to 2**24 steps
        return {
            "mean": self._mean.copy(),
            "square": self._square.copy(),
            "steps": np.array([self._steps], np.float32),
        }

    def load_state_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """See `Optimizer.load_state_arrays`."""
        _check_names(arrays, "mean", "square", "steps")
        self._mean = arrays["mean"].astype(np.float32) if arrays else None
        self._square = arrays["square"].astype(np.float32) if arrays else None
        self._steps = int(arrays["steps"].astype(np.float32)[0]) if arrays else 0


def _checked_rate(rate: float) -> float:
    if not (math.isfinite(rate) and rate > 0):
        raise SettingError(f"rate must be positive, got {rate}")
    return rate


def _checked_decay(name: str, decay: float) -> float:
    if not 0 <= decay < 1:
        raise SettingError(f"{name} must be in [0, 1), got {decay}")
    return decay


def _check_names(arrays: Mapping[str, NDArray[np.generic]], *names: str) -> None:
    if arrays and set(arrays) != set(names):
        raise StateError(f"optimizer state needs {', '.join(names)}, got {', '.join(sorted(arrays))}")
