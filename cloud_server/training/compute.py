"""Where the cloud computes, and how precisely: what is on a device is put there, and taken back, here.

Everything else holds NumPy arrays, or tensors in the host's memory.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cloud_server.config import DEVICES, PRECISIONS
from cloud_server.errors import OutOfMemory
from protocol.errors import SettingError

log = logging.getLogger("cloud_server")

Array = NDArray[Any] | Tensor

# Convolutions run faster with the channels innermost.
FORMAT = torch.channels_last

_TORCH_SEED_LIMIT = 1 << 63
_CPU = torch.device("cpu")
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@dataclass(frozen=True)
class Compute:
    """A device, and the type that convolutions and products are done in."""

    device: torch.device = _CPU
    dtype: torch.dtype = torch.float32
    """Weights, moments, statistics and losses are float32 whatever this is (torch's autocast)."""

    def features(self, features_BCHW: Array) -> Tensor:
        """float32 on the device, channels innermost in memory."""
        return self.tensor(features_BCHW).to(torch.float32).contiguous(memory_format=FORMAT)

    def tensor(self, array: Array) -> Tensor:
        """The same numbers on the device, where possible in the same memory."""
        return as_tensor(array).to(self.device)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """While a network runs."""
        if self.dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    @contextlib.contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """Torch's generators at a seed, the host's and the device's, and afterwards as they were."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed % _TORCH_SEED_LIMIT)
            yield


ON_CPU = Compute()


def as_tensor(array: Array) -> Tensor:
    """The same numbers, where possible in the same memory."""
    # Torch can't share the memory of a read-only array without a warning.
    return array if isinstance(array, Tensor) else torch.from_numpy(np.require(array, requirements="W"))


def check_device(name: str) -> None:
    """Refuse a device that isn't there, without taking any of its memory.

    Raises:
        SettingError: it is CUDA, and torch has none here.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise SettingError(f"device cuda: {_why_no_cuda()}; give --device cpu, or auto")


def find_compute(device: str, precision: str) -> Compute:
    """What the settings `device` and `precision` name; `auto` is CUDA where it works.

    On CUDA torch is told to use algorithms that give the same bits again, and to warn where it has none.

    Raises:
        SettingError: no such device is here, or it can't do that.
    """
    if device not in DEVICES or precision not in PRECISIONS:
        raise SettingError(
            f"device must be one of {', '.join(DEVICES)}, precision one of {', '.join(PRECISIONS)}, got "
            f"{device} and {precision}"
        )
    check_device(device)
    found = _CPU
    if device != "cpu" and torch.cuda.is_available():
        found = _cuda(asked=device == "cuda") or found
    if precision == "float16" and found.type == "cpu":
        raise SettingError("precision float16 is for device cuda; on a CPU take bfloat16 or float32")
    log.info("the cloud computes on %s in %s", _described(found), precision)
    return Compute(found, getattr(torch, precision))


def _cuda(*, asked: bool) -> torch.device | None:
    """The first CUDA device, made reproducible; None where it doesn't work and nobody asked for it."""
    # cuBLAS reads this when it first starts; with several streams' workspaces it may add in another order.
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    device = torch.device("cuda", torch.cuda.current_device())
    try:
        torch.ones(2, 2, device=device).matmul(torch.ones(2, 2, device=device)).sum().item()
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        if asked:
            raise SettingError(f"device cuda does not work here: {reason}; give --device cpu") from error
        log.warning("CUDA is here but does not work, so the CPU it is: %s", reason)
        return None
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    return device


def _why_no_cuda() -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    return f"torch {torch.__version__} finds no CUDA device or driver"


def _described(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else "the CPU"


@contextlib.contextmanager
def within_memory(device: torch.device) -> Iterator[None]:
    """While the network runs.

    Raises:
        OutOfMemory: the device's memory, or the host's, was not enough.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        ours = isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
        if not ours:
            raise
        where = "the GPU" if isinstance(error, torch.OutOfMemoryError) else "this machine"
        raise OutOfMemory(
            f"out of memory on {where} ({device}): lower first_order.batch_size or the image size, or take a "
            "smaller network or precision bfloat16; what was committed is safe, so on a freer device the run "
            "can be resumed as it is"
        ) from error
