"""Nothing shared: a cloud network for each vehicle, and the two learn as in white-box split learning.

Every network starts from the same weights and follows the rate schedule over its own steps, so that what a
vehicle learns does not depend on who else is in the fleet.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cloud_server.algorithms.base import Context, training_steps
from cloud_server.algorithms.participation import turns_of_learning
from cloud_server.algorithms.replay import Replay
from cloud_server.algorithms.white_box import WhiteBox
from cloud_server.schedule import all_together
from cloud_server.storage.checkpoint import flatten_state, unflatten_state
from cloud_server.storage.vehicle_store import VehicleStore
from cloud_server.training.trainer import Trainer

_STRUCTURE = "structure"
"""Name of the tensor of bytes that says where the others belong."""


def individual(context: Context) -> WhiteBox:
    """The algorithm in its row of the table."""
    config = context.config
    turns = turns_of_learning(config)
    networks = OwnNetworks(
        context.trainer,
        VehicleStore(context.run_folder / "cloud" / "own", capacity=config.store_capacity),
        {
            vehicle: max(1, training_steps(config, frames) * turns[vehicle] // config.rounds)
            for vehicle, frames in context.train_frames.items()
        },
        context.class_weights,
    )
    stages = all_together(config.vehicles, config.rounds)
    return WhiteBox(context, networks=networks, replay=Replay(context, shared=False), stages=stages)


class OwnNetworks:
    """Each on disk once committed, in memory while its turn is under way, in the trainer while it is used."""

    def __init__(
        self,
        trainer: Trainer,
        store: VehicleStore,
        total_steps: Mapping[str, int],
        class_weights: Callable[[Sequence[str]], NDArray[np.float32]] | None,
    ) -> None:
        self._trainer = trainer
        self._class_weights = class_weights
        self._store = store
        self._total_steps = total_steps
        self._start = trainer.state_dict()
        self._holder: str | None = None
        """Whose network the trainer holds."""
        self._learning: set[str] = set()
        """Whose network has learnt something that is not in the store."""
        self._set_aside: dict[str, dict[str, Any]] = {}
        """States of learning networks that the trainer does not hold."""

    def begin(self, vehicle: str) -> None:
        self._learning.discard(vehicle)
        self._set_aside.pop(vehicle, None)
        if self._holder == vehicle:
            self._holder = None

    def learn(self, vehicle: str) -> None:
        self._take_up(vehicle)
        self._learning.add(vehicle)

    @contextmanager
    def serving(self, vehicle: str) -> Iterator[None]:
        self._take_up(vehicle)
        yield

    def keep(self, vehicle: str, turn_id: int, score: float) -> None:
        self._store.put(vehicle, pack_state(self._trainer.state_dict()), score=score, turn_id=turn_id)
        self._learning.discard(vehicle)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {}

    def meta(self) -> dict[str, Any]:
        return {"own": self._store.references()}

    def restore(self, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        self._store.restore(meta["own"])

    def stage_kept(self) -> None:
        pass  # what was learnt is in the store

    def committed(self) -> None:
        self._store.prune()

    def _take_up(self, vehicle: str) -> None:
        if self._holder != vehicle:
            if self._holder in self._learning:
                assert self._holder is not None
                self._set_aside[self._holder] = self._trainer.state_dict()
            state = self._set_aside.pop(vehicle, None) or self._from_before(vehicle)
            self._trainer.load_state_dict(state)
            self._trainer.span_schedule(self._total_steps[vehicle])
            if self._class_weights is not None:
                self._trainer.weigh_classes(partial(self._class_weights, (vehicle,)))
            self._holder = vehicle

    def _from_before(self, vehicle: str) -> dict[str, Any]:
        """The trainer's state that the vehicle's turn starts from."""
        tensors = self._store.get(vehicle)
        return self._start if tensors is None else unpack_state(tensors)


def pack_state(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """A trainer's snapshot as tensors alone, for a store that holds nothing else."""
    tensors, structure = flatten_state(state)
    text = json.dumps(structure).encode()
    return {**tensors, _STRUCTURE: torch.frombuffer(bytearray(text), dtype=torch.uint8)}


def unpack_state(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The snapshot that `pack_state` was given."""
    structure = json.loads(tensors[_STRUCTURE].numpy().tobytes())
    state: dict[str, Any] = unflatten_state(tensors, structure)
    return state
