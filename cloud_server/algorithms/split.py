"""White-box split learning: one cloud network learns with every vehicle's encoder, gradients come back.

The upper bound of what the black box can reach: BlackFed's order of turns, exact gradients. Encoder and
network fit each other at the end of the vehicle's turn, then the network moves on: the weights of then
serve the vehicle. Where all have one encoder, it has moved on as well, and the latest weights serve everyone.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

from cloud_server.algorithms.base import Context
from cloud_server.algorithms.replay import Replay
from cloud_server.algorithms.traits import one_encoder
from cloud_server.algorithms.white_box import WhiteBox
from cloud_server.schedule import round_robin
from cloud_server.storage.checkpoint import flatten_state, unflatten_state
from cloud_server.storage.vehicle_store import VehicleStore
from cloud_server.training.trainer import Trainer


def split(context: Context) -> WhiteBox:
    """The algorithm in its row of the table."""
    stages = round_robin(context.config.vehicles, context.config.rounds)
    served = VehicleStore(context.run_folder / "cloud" / "served", capacity=context.config.store_capacity)
    networks = OneNetworkInTurns(context.trainer, None if one_encoder(context.config) else served)
    return WhiteBox(context, networks=networks, replay=Replay(context), stages=stages)


class OneNetworkInTurns:
    """The trainer's network learns in every turn; where there is a store, a copy from the end of its turn
    serves each vehicle."""

    def __init__(self, trainer: Trainer, served: VehicleStore | None = None) -> None:
        self._trainer = trainer
        self._served = served
        self._kept = trainer.state_dict()
        self._changed = False

    def begin(self, vehicle: str) -> None:
        if self._changed:
            self._trainer.load_state_dict(self._kept)
            self._changed = False

    def learn(self, vehicle: str) -> None:
        self._changed = True

    def serving(self, vehicle: str) -> AbstractContextManager[None]:
        return self._trainer.borrowed_weights(self._served.get(vehicle) if self._served else None)

    def keep(self, vehicle: str, turn_id: int, score: float) -> None:
        if self._served:
            self._served.put(vehicle, self._trainer.weights(), score=score, turn_id=turn_id)

    def tensors(self) -> dict[str, torch.Tensor]:
        return flatten_state(self._trainer.state_dict())[0]

    def meta(self) -> dict[str, Any]:
        return {
            "trainer": flatten_state(self._trainer.state_dict())[1],
            "served": self._served.references() if self._served else {},
        }

    def restore(self, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        self._trainer.load_state_dict(unflatten_state(tensors, meta["trainer"]))
        self._kept = self._trainer.state_dict()
        if self._served:
            self._served.restore(meta["served"])

    def stage_kept(self) -> None:
        if self._changed:
            self._kept = self._trainer.state_dict()
            self._changed = False

    def committed(self) -> None:
        if self._served:
            self._served.prune()
