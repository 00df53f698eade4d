"""The networks that serve vehicles that drive: copies of what was committed last, whatever learns meanwhile.

Legend: C channels, H W feature rows and columns.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cloud_server.algorithms.base import Serves
from cloud_server.desk.handlers.serving import Answer
from cloud_server.training.inference import Inference
from cloud_server.training.trainer import Trainer


@dataclass(frozen=True)
class _Weights:
    tensors: Mapping[str, torch.Tensor]
    stage: int


class ServedNetworks:
    """Weights by vehicle, alike ones once, and one network that takes them up in turn.

    `refresh` is called by the thread that learns, between stages; `class_map` by the one that serves.
    """

    def __init__(self, trainer: Trainer) -> None:
        """`trainer` holds the network that learns; it is copied.

        Raises:
            OutOfMemory: there is no room for a second one.
        """
        self._trainer = trainer
        self._inference = Inference(
            trainer.network(),
            loss=trainer.config.loss,
            threads=trainer.config.inference_threads,
            compute=trainer.compute,
        )
        self._lock = threading.Lock()
        self._weights: dict[str, _Weights] = {}
        self._loaded: _Weights | None = None

    def refresh(self, algorithm: Serves, vehicles: Iterable[str], stage: int) -> None:
        """Take what serves these vehicles now that `stage` stages are committed."""
        found: dict[str, _Weights] = {}
        for vehicle in vehicles:
            with algorithm.serving(vehicle):
                weights = _Weights(self._trainer.weights(), stage)
            found[vehicle] = next((each for each in found.values() if _alike(each, weights)), weights)
        with self._lock:
            self._weights = found

    def class_map(
        self, vehicle: str, features_1CHW: NDArray[np.float32], size_hw: tuple[int, int]
    ) -> Answer | None:
        """See `ServesFrames.class_map`."""
        with self._lock:
            weights = self._weights.get(vehicle)
        if weights is None:
            return None
        if self._loaded is not weights:
            self._inference.load_weights(weights.tensors)
            self._loaded = weights
        return Answer(*self._inference.class_map(features_1CHW, size_hw), weights.stage)


def _alike(one: _Weights, other: _Weights) -> bool:
    return all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())
