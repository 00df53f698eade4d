"""Training the cloud's network, so that the same calls give the same bits.

Legend: n frames in all, B frames of a batch, C channels, H W feature or label rows and columns, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cloud_server.errors import CloudError
from cloud_server.training.adamw import PlainAdamW
from cloud_server.training.compute import ON_CPU, Array, Compute, as_tensor
from cloud_server.training.inference import Inference, check_same, on_host
from cloud_server.training.losses import downsample_labels, find_loss
from cloud_server.training.source_features import SourceReplay
from protocol.batches import batch_bounds
from protocol.charging import Computing, charge
from protocol.errors import BlackfleetError, SettingError
from protocol.noise import derive_seed, permutation
from protocol.rates import SCHEDULES

Progress = Callable[[int, int, float], None]
"""Called after a step with (steps done, steps in all, its loss); may itself take further steps."""
Visited = Callable[[int, NDArray[np.int64]], None]
"""(epoch, positions of the frames that a step was just taken on)."""

_MOMENTS = ("exp_avg", "exp_avg_sq")
_LOSS_SCALE = "loss_scale"
_WAY_BACK_COSTS = 2
"""In forward passes, for whoever simulates time: gradients of features and of weights."""


class DivergedError(BlackfleetError):
    """A training step had a loss, or a gradient for its features, that is not finite.

    The network may be spoilt by it: restore a snapshot.
    """


@dataclass(frozen=True, kw_only=True)
class PartConfig:
    """How a part of the network is trained, where not as the rest; the schedule is the same."""

    prefix: str
    """Of its parameters' names."""
    rate: float
    """Highest rate of AdamW."""
    weight_decay: float


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How the network is trained."""

    loss: str = "cross-entropy"
    """A name in `cloud_server.training.losses.LOSSES`."""
    rate: float = 2e-3
    """Highest rate of AdamW."""
    weight_decay: float = 0.01
    schedule: str = "constant"
    """A name in `protocol.rates.SCHEDULES`."""
    total_steps: int = 0
    """Steps that the schedule spans; from then on the rate stays at its last value. Unused by `constant`."""
    training_threads: int = 1
    """Intra-op threads of a training step."""
    inference_threads: int = 1
    """Intra-op threads of losses and predictions."""
    seed: int = 0
    """Decides what the network itself draws (dropout)."""
    parts: tuple[PartConfig, ...] = ()
    """Parts that are trained with a rate and weight decay of their own."""

    def __post_init__(self) -> None:
        find_loss(self.loss)
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise SettingError(f"learning rate must be positive, got {self.rate}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise SettingError(f"weight decay must not be negative, got {self.weight_decay}")
        if self.schedule not in SCHEDULES:
            raise SettingError(f"unknown schedule {self.schedule!r}, expected one of: {', '.join(SCHEDULES)}")
        if self.schedule != "constant" and self.total_steps < 1:
            raise SettingError(
                f"schedule {self.schedule} needs total_steps of 1 or more, got {self.total_steps}"
            )
        for count in (self.training_threads, self.inference_threads):
            if count < 1:
                raise SettingError(f"number of threads must be 1 or more, got {count}")


class Trainer(Inference):
    """Owns a network and its AdamW state: what infers, and learns besides.

    Threads, features and labels are as `Inference` says.
    """

    def __init__(
        self,
        network: nn.Module,
        config: TrainerConfig,
        *,
        source_replay: SourceReplay | None = None,
        compute: Compute = ON_CPU,
    ) -> None:
        """`source_replay`: what may follow each step; not counted as a step of the schedule."""
        self.config = config
        self._source_replay = source_replay
        super().__init__(network, loss=config.loss, threads=config.inference_threads, compute=compute)
        groups = _parameter_groups(self._network, config)
        self._rates = [group["lr"] for group in groups]
        self._optimizer = PlainAdamW(groups, fused=True)
        # float16 has so small a range that gradients must be scaled into it.
        self._scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.dtype is torch.float16)
        self._steps = 0
        self._total_steps = config.total_steps

    @property
    def steps(self) -> int:
        """Training steps taken so far, those before a restored snapshot included."""
        return self._steps

    @property
    def rate_share(self) -> float:
        """Share of the highest rate that the next step is taken with."""
        step = min(self._steps, max(self._total_steps - 1, 0))
        return SCHEDULES[self.config.schedule](step, self._total_steps)

    def span_schedule(self, total_steps: int) -> None:
        """Let the rate schedule span `total_steps`, 1 or more, instead of those of the configuration."""
        self._total_steps = total_steps

    # Training

    def train_step(self, features_BCHW: Array, label_BHW: Array) -> float:
        """Take one optimiser step and return the loss before it.

        Raises:
            DivergedError: the loss is not finite.
        """
        with self._training():
            return self._train_step(features_BCHW, label_BHW)[0]

    def train_step_with_gradient(
        self, features_BCHW: Array, label_BHW: Array
    ) -> tuple[float, NDArray[np.float32]]:
        """Take one optimiser step; return the loss before it and its gradient, float32[B, C, H, W], at the
        features.

        Raises:
            DivergedError: the loss or the gradient is not finite.
        """
        with self._training():
            leaf_BCHW = self._compute.features(features_BCHW).detach().requires_grad_()
            loss, scale = self._train_step(leaf_BCHW, label_BHW)
            assert leaf_BCHW.grad is not None
            return loss, self._finite(leaf_BCHW.grad / scale)

    def train_epochs(
        self,
        features_nCHW: Array,
        label_nHW: Array,
        *,
        epochs: int,
        batch_size: int,
        seed: int,
        progress: Progress | None = None,
        visited: Visited | None = None,
    ) -> list[float]:
        """Train on every frame once an epoch, in an order drawn from `seed`; return each epoch's mean loss.

        The last batch of an epoch takes what is left, and a single left-over frame joins the batch before
        it, because a batch of one has poor statistics.

        Raises:
            DivergedError: a loss is not finite.
            ValueError: no frames, as many labels as frames are missing, or a number below one.
        """
        n = len(features_nCHW)
        if n < 1 or len(label_nHW) != n:
            raise ValueError(
                f"training needs as many labels as frames, got {n} frames, {len(label_nHW)} labels"
            )
        if epochs < 1 or batch_size < 1:
            raise ValueError(f"epochs and batch size must be 1 or more, got {epochs} and {batch_size}")
        with self._training():
            features_nCHW, label_nHW = as_tensor(features_nCHW), as_tensor(label_nHW)
            bounds = batch_bounds(n, batch_size)
            means = []
            for epoch in range(epochs):
                order_n = torch.from_numpy(permutation(derive_seed(seed, "epoch", epoch), n))
                total = 0.0
                for step, (start, stop) in enumerate(bounds):
                    chosen_B = order_n[start:stop]
                    loss, _ = self._train_step(features_nCHW[chosen_B], label_nHW[chosen_B])
                    total += loss * (stop - start)
                    if visited is not None:
                        visited(epoch, chosen_B.numpy())
                    if progress is not None:
                        progress(epoch * len(bounds) + step + 1, epochs * len(bounds), loss)
                means.append(total / n)
            return means

    def _train_step(self, features_BCHW: Array, label_BHW: Array) -> tuple[float, float]:
        value, scale = self._step(features_BCHW, label_BHW, "step")
        replay = self._source_replay and self._source_replay.after(self._steps)
        if replay:
            self._step(*replay, "source-step")
        self._steps += 1
        return value, scale

    def _step(self, features_BCHW: Array, label_BHW: Array, name: str) -> tuple[float, float]:
        """The loss before the step, and what its gradients are scaled by."""
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * self.rate_share
        features_BCHW = self._compute.features(features_BCHW)
        label_BHW = self._compute.tensor(label_BHW)
        cells = features_BCHW.shape[-2] * features_BCHW.shape[-1]
        charge(Computing.NETWORK, _WAY_BACK_COSTS * len(features_BCHW), cells)
        while True:
            with self._compute.seeded(derive_seed(self.config.seed, name, self._steps)):
                logits_BKhw = self._logits(features_BCHW)
            loss = self._weighted_loss(logits_BKhw, downsample_labels(label_BHW, logits_BKhw.shape[-2:]))
            value = loss.item()
            if not math.isfinite(value):
                raise DivergedError(f"training loss became {value} in step {self._steps}: lower the rate")
            self._optimizer.zero_grad()
            scale = self._scaler.get_scale()
            torch.autograd.backward(self._scaler.scale(loss))
            self._scaler.step(self._optimizer)
            self._scaler.update()
            if self._scaler.get_scale() >= scale:
                return value, scale
            # A gradient overflowed, and no step was taken: once more with the lower scale.
            if scale <= 1:
                raise DivergedError(f"a gradient is not finite in step {self._steps}: lower the rate")
            features_BCHW.grad = None

    def _finite(self, gradient_BCHW: Tensor) -> NDArray[np.float32]:
        if not torch.isfinite(gradient_BCHW).all():
            raise DivergedError(f"the features' gradient is not finite in step {self._steps}: lower the rate")
        return np.ascontiguousarray(gradient_BCHW.cpu().numpy())

    def evaluate_gradient(
        self, features_BCHW: Array, label_BHW: Array | None
    ) -> tuple[float, NDArray[np.float32]]:
        """In evaluation mode: the loss of the batch and its gradient, float32[B, C, H, W], at the features.

        Raises:
            DivergedError: the loss or the gradient is not finite.
        """
        with self._working(self.config.training_threads):
            leaf_BCHW = self._compute.features(features_BCHW).detach().requires_grad_()
            loss = self._evaluate_loss(leaf_BCHW, label_BHW)
            if not math.isfinite(loss.item()):
                raise DivergedError(f"the loss became {loss.item()} in step {self._steps}: lower the rate")
            charge(
                Computing.NETWORK,
                _WAY_BACK_COSTS * len(leaf_BCHW),
                leaf_BCHW.shape[-2] * leaf_BCHW.shape[-1],
            )
            scale = self._scaler.get_scale()
            [gradient_BCHW] = torch.autograd.grad(self._scaler.scale(loss), leaf_BCHW)
            return loss.item(), self._finite(gradient_BCHW / scale)

    def advance_schedule(self, steps: int = 1) -> None:
        """Let the rate schedule go on by steps that this network does not take."""
        self._steps += steps

    # Snapshots

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all that training depends on: weights, moments, steps.

        A nested dictionary of tensors and numbers (`checkpoint.flatten_state` makes it storable). A trainer
        of the same configuration that loads it goes on bit for bit as this one would.
        """
        with self._lock:
            moments: dict[str, dict[str, Tensor]] = {name: {} for name in _MOMENTS}
            # An input stem is stepped only by batches of its shape; source replay adds steps to the others.
            rarer_steps: dict[str, int] = {}
            for parameter_name, parameter in self._network.named_parameters():
                state = self._optimizer.state.get(parameter, {})
                for name in state.keys() & moments.keys():
                    moments[name][parameter_name] = on_host(state[name])
                if state and int(state["step"]) != self._steps:
                    rarer_steps[parameter_name] = int(state["step"])
            return {
                "network": self.weights(),
                "optimizer": moments,
                "steps": self._steps,
                "rarer_steps": rarer_steps,
                **({_LOSS_SCALE: self._scaler.state_dict()} if self._scaler.is_enabled() else {}),
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a snapshot of `state_dict()`.

        Raises:
            CloudError: it is not a snapshot of such a trainer; nothing is changed then.
        """
        with self._lock:
            if not {"network", "optimizer", "steps", "rarer_steps"} <= set(state):
                raise CloudError(
                    f"a trainer's snapshot needs network, optimizer and steps, got {sorted(state)}"
                )
            parameters = dict(self._network.named_parameters())
            moments: dict[str, dict[str, Tensor]] = state["optimizer"]
            rarer_steps: dict[str, int] = state["rarer_steps"]
            stepped = {name: value for name, value in parameters.items() if name in moments["exp_avg"]}
            for name in _MOMENTS:
                check_same(moments[name], stepped, f"optimiser's {name}")
            self.load_weights(state["network"])
            self._steps = int(state["steps"])
            if self._scaler.is_enabled():
                self._scaler.load_state_dict(state[_LOSS_SCALE])
            self._optimizer.state.clear()
            for parameter_name, parameter in stepped.items():
                # The fused step walks memory: the moments must lie in memory as their parameter does.
                self._optimizer.state[parameter] = {
                    "step": self._compute.tensor(
                        torch.tensor(float(rarer_steps.get(parameter_name, self._steps)))
                    ),
                    **{
                        name: torch.empty_like(parameter, requires_grad=False).copy_(
                            moments[name][parameter_name]
                        )
                        for name in _MOMENTS
                    },
                }

    # Common ground

    @contextmanager
    def _training(self) -> Iterator[None]:
        with self._working(self.config.training_threads):
            before = self._network.training
            self._network.train()
            try:
                yield
            finally:
                self._network.train(before)


def _parameter_groups(network: nn.Module, config: TrainerConfig) -> list[dict[str, Any]]:
    """AdamW's groups: the parts with rates of their own, and the rest first."""
    parts = {part.prefix: part for part in config.parts}
    members: dict[str, list[nn.Parameter]] = {prefix: [] for prefix in ("", *parts)}
    for name, parameter in network.named_parameters():
        prefix = next((prefix for prefix in parts if name.startswith(prefix)), "")
        members[prefix].append(parameter)
    rest = PartConfig(prefix="", rate=config.rate, weight_decay=config.weight_decay)
    return [
        {"params": members[part.prefix], "lr": part.rate, "weight_decay": part.weight_decay}
        for part in (rest, *config.parts)
    ]
