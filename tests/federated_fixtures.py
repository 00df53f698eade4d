"""The whole network of tiny fleets, and tiny fleets whose vehicles have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from fleet_fixtures import IMAGE_SIZE, TinyFleet, World

from cloud_server.config import network_seed
from cloud_server.storage.checkpoint import load_checkpoint
from datasets.labels import CAMVID
from edge_client.host import HostConfig
from fleet.export.local_model import build_whole_network, export_local_model
from protocol.local_model import FOLDER_NAME, LocalModel
from protocol.plans.federated import FederatedPlan
from protocol.plans.first_order import FirstOrder

_ENCODER, _NETWORK = "stride8-c4", "compact"
SGD = FederatedPlan(optimizer="sgd", statistics="frozen")
ONE_STEP = FirstOrder(epochs=1, batch_size=100, rate=0.1, schedule="constant", weight_decay=0.0)


def export_tiny_model(folder: Path, *, seed: int = 0) -> LocalModel:
    """The local model of a tiny fleet of this seed, written to `folder`."""
    return export_local_model(
        folder,
        encoder=_ENCODER,
        network=_NETWORK,
        loss="cross-entropy",
        label_space_name="camvid",
        image_size=IMAGE_SIZE,
        encoder_seed=0,
        network_seed=network_seed(seed),
    )


def tiny_module() -> torch.nn.Module:
    """What `export_tiny_model` exports of seed 0."""
    return build_whole_network(
        _ENCODER,
        _NETWORK,
        image_size=IMAGE_SIZE,
        num_classes=CAMVID.num_classes,
        encoder_seed=0,
        network_seed=network_seed(0),
    )


class FederatedFleet(TinyFleet):
    """A tiny fleet whose vehicles have the whole network."""

    def __init__(self, world: World, folder: Path, **changes: Any) -> None:
        super().__init__(world, folder, **{"algorithm": "fedavg", "parallel_turns": 2, **changes})
        self.local_model = self.run_folder / FOLDER_NAME
        export_tiny_model(self.local_model, seed=self.config.seed)

    def host(self, *cars: str, **patience: float) -> HostConfig:
        plain = super().host(*cars, **patience)
        vehicles = tuple(
            msgspec.structs.replace(
                vehicle,
                local_model=str(self.local_model),
                predictions={"test": str(self.run_folder / "predictions" / vehicle.id)},
            )
            for vehicle in plain.vehicles
        )
        return msgspec.structs.replace(plain, vehicles=vehicles)

    def weights(self) -> dict[str, np.ndarray]:
        """The global weights after the run."""
        tensors, _ = load_checkpoint(self.run_folder / "cloud" / "checkpoints")
        return {
            name.removeprefix("global/"): tensor.numpy()
            for name, tensor in tensors.items()
            if name.startswith("global/")
        }
