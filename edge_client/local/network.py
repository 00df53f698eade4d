"""The whole segmentation network on a vehicle: the only file here that runs torch, and only in its functions.

It is imported only when a turn asks for local training, so that every other vehicle needs no torch.
Legend: B frames, H W rows and columns, K classes, h w logit rows and columns.
"""

from __future__ import annotations

import importlib.util
import io
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_client.errors import TurnRefused, VehicleError
from edge_client.work import count
from protocol.codec.weights import WeightArrays
from protocol.local_model import LocalModel
from protocol.noise import derive_seed

if TYPE_CHECKING:
    import torch

Batch = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""image_BHWC RGB, label_BHW trainIds."""

_RANDOM = threading.Lock()
"""Torch's generator is one for the process: vehicles of a host draw (dropout) one at a time."""

_TORCH_SEED_LIMIT = 1 << 63


TRAINING_DEVICES = ("cpu", "cuda")
"""What a vehicle can be told to train the whole network on."""
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def require_torch(device: str = "cpu") -> None:
    """Check that local training is possible here, on this device.

    On CUDA torch is told to use algorithms that give the same bits again, as in the cloud.

    Raises:
        VehicleError: torch is not installed, or finds no such device.
    """
    if importlib.util.find_spec("torch") is None:
        raise VehicleError(
            "local training (fedavg) needs torch on the vehicle: pip install 'blackfleet[federated]'"
        )
    if device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise VehicleError(
            f"training device cuda: torch {torch.__version__} finds no CUDA device here; give "
            "--training-device cpu"
        )
    # cuBLAS reads this when it first starts.
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


@dataclass(frozen=True, kw_only=True)
class LocalTraining:
    """How a vehicle trains the network by itself."""

    optimizer: str
    """`sgd` or `adamw`."""
    momentum: float
    weight_decay: float
    proximal: float
    """μ of FedProx: pulls the weights to those that training started from."""
    frozen_statistics: bool
    """Whether BatchNorm uses its running statistics, unchanged, instead of each batch's own."""
    seed: int
    """Decides what the network itself draws (dropout)."""
    class_weights: NDArray[np.float32] | None = None
    """What a pixel counts by its class, float32 (K,); None: all alike."""


class LocalNetwork:
    """One vehicle's copy, for one turn; deterministic for the same calls, device and thread count."""

    def __init__(
        self,
        model: LocalModel,
        weights: Mapping[str, NDArray[np.float32]],
        *,
        threads: int,
        device: str = "cpu",
    ) -> None:
        """Start from `weights`, which must be all of the model's entries; `device` is torch's name."""
        self._model = model
        self._threads = threads
        self._device = device
        self._weights: WeightArrays = dict(weights)

    @property
    def weights(self) -> WeightArrays:
        """All entries by name, as they are now."""
        return self._weights

    def predictor(self) -> Callable[[NDArray[np.uint8], tuple[int, int]], NDArray[np.uint8]]:
        """A function (image_BHWC, (height, width)) → likeliest trainIds uint8 (B, height, width).

        It keeps the weights of this moment. Logits are enlarged bilinearly, as the cloud does it.
        """
        import torch

        program = self._program("predict")

        def predict(image_BHWC: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
            with self._deterministic(), torch.inference_mode():
                logits_BKhw = program(torch.from_numpy(image_BHWC).to(self._device))
                logits_BKhw = torch.nn.functional.interpolate(
                    logits_BKhw, size=size_hw, mode="bilinear", align_corners=False
                )
                label_BHW: NDArray[np.uint8] = logits_BKhw.argmax(dim=1).to(torch.uint8).cpu().numpy()
                count(len(image_BHWC), self._model.spec.multiply_adds, forwards=True)
                return label_BHW

        return predict

    def train(self, training: LocalTraining, epochs: Iterable[tuple[float, Iterable[Batch]]]) -> list[float]:
        """Take one optimiser step a batch; returns each epoch's mean loss over its frames.

        `epochs` gives each epoch's step size and batches.

        Raises:
            TurnRefused: a loss or a weight is not finite; the weights stay as they were.
        """
        import torch

        program = self._program("predict" if training.frozen_statistics else "train")
        loss_of = self._loss(training.class_weights)
        parameters = dict(program.named_parameters())
        start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        optimizer = _optimizer(training, list(parameters.values()))
        generators = [torch.cuda.current_device()] if self._device == "cuda" else []
        means = []
        steps = 0
        with self._deterministic():
            for rate, batches in epochs:
                total, frames = 0.0, 0
                for group in optimizer.param_groups:
                    group["lr"] = rate
                for image_BHWC, label_BHW in batches:
                    with _RANDOM, torch.random.fork_rng(devices=generators):
                        torch.manual_seed(derive_seed(training.seed, "step", steps) % _TORCH_SEED_LIMIT)
                        logits_BKhw = program(torch.from_numpy(image_BHWC).to(self._device))
                    loss = loss_of(logits_BKhw, torch.from_numpy(label_BHW).to(self._device))
                    value = float(loss.item())
                    if not math.isfinite(value):
                        raise TurnRefused(
                            f"local training diverged in step {steps}: lower the rate ({rate:g})"
                        )
                    optimizer.zero_grad()
                    torch.autograd.backward(loss)
                    if training.proximal > 0:
                        for name, parameter in parameters.items():
                            assert parameter.grad is not None
                            parameter.grad.add_(parameter.detach() - start[name], alpha=training.proximal)
                    optimizer.step()
                    # The way back has two products for each of the way there: to inputs, and to weights.
                    step_adds = 3 * self._model.spec.multiply_adds
                    count(len(image_BHWC), step_adds, forwards=True, ways_back=True)
                    steps += 1
                    total += value * len(image_BHWC)
                    frames += len(image_BHWC)
                means.append(total / frames)
        state = program.state_dict()
        trained = {name: state[name].detach().cpu().contiguous().numpy().copy() for name in self._weights}
        if not all(np.isfinite(array).all() for array in trained.values()):
            raise TurnRefused("local training diverged: a weight is no longer finite; lower the rate")
        self._weights = trained
        return means

    def _program(self, name: str) -> torch.jit.ScriptModule:
        """A program with the present weights in it."""
        import torch

        program = _load(self._model.programs[name], self._device)
        state = program.state_dict()
        with torch.no_grad():
            for entry, array in self._weights.items():
                state[entry].copy_(torch.from_numpy(np.require(array, requirements="W")))
        return program

    def _loss(
        self, class_weights: NDArray[np.float32] | None
    ) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """(logits_BKhw, label_BHW) → a scalar."""
        import torch

        if class_weights is None:
            plain: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = _load(
                self._model.programs["loss"], self._device
            )
            return plain
        program = _load(self._model.programs["weighted_loss"], self._device)
        weight_K = torch.from_numpy(class_weights).to(self._device)
        return lambda logits_BKhw, label_BHW: program(logits_BKhw, label_BHW, weight_K)

    @contextmanager
    def _deterministic(self) -> Iterator[None]:
        """A fixed number of threads, and no optimisation of a program after its first runs."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
                yield
        finally:
            torch.set_num_threads(before)


def _load(program: bytes, device: str) -> torch.jit.ScriptModule:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
            io.BytesIO(program), map_location=device
        )
    make_on(module, device)
    return module


def make_on(module: torch.jit.ScriptModule, device: str) -> None:
    """Let a program that has not run yet make its tensors on a device.

    Wherever it makes one without another, a trace has kept the device that it was taken on.
    """
    for part in module.modules():
        compiled: Any = part._c
        for method in compiled._method_names():
            graph = compiled._get_method(method).graph
            for node in graph.findAllNodes("prim::Constant", recurse=True):
                if node.output().type().kind() == "DeviceObjType":
                    node.s_("value", device)


def _optimizer(training: LocalTraining, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Its rate is set in each epoch."""
    import torch

    if training.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=0.0, momentum=training.momentum, weight_decay=training.weight_decay
        )
    return torch.optim.AdamW(parameters, lr=0.0, weight_decay=training.weight_decay, fused=True)
