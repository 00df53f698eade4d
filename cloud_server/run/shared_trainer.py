"""The network that a run's cloud trains, as its settings and the vehicles that have joined want it."""

from __future__ import annotations

from pathlib import Path

from cloud_server.algorithms.base import training_steps
from cloud_server.algorithms.participation import turns_of_learning
from cloud_server.config import CloudConfig, network_seed
from cloud_server.desk.registry import Registry
from cloud_server.errors import CloudError
from cloud_server.networks.stems import build_shared_network
from cloud_server.storage.checkpoint import read_tensors
from cloud_server.training.compute import find_compute
from cloud_server.training.source_features import load_source_replay
from cloud_server.training.trainer import Trainer, TrainerConfig
from protocol.errors import MENDABLE
from protocol.noise import derive_seed


def build_trainer(config: CloudConfig, registry: Registry, run_folder: Path, *, num_classes: int) -> Trainer:
    """The trainer as it is before the first stage; every vehicle has said hello.

    Raises:
        CloudError: network, weights or source features can't be had, or don't fit the vehicles.
    """
    first, image_size = config.first_order, registry.image_size
    assert image_size is not None, "every vehicle has said hello"
    try:
        feature_shapes = [registry.feature_shape(vehicle) for vehicle in config.vehicles]
        network = build_shared_network(
            config.network.name,
            feature_shapes=feature_shapes,
            image_size=image_size,
            num_classes=num_classes,
            seed=network_seed(config.seed),
            weights=Path(config.network.weights) if config.network.weights else None,
        )
        trainer = Trainer(
            network,
            TrainerConfig(
                loss=first.loss,
                rate=first.rate,
                weight_decay=first.weight_decay,
                schedule=first.schedule,
                total_steps=max(
                    1,
                    sum(
                        training_steps(config, len(registry.frames(vehicle, "train")))
                        * turns
                        // config.rounds
                        for vehicle, turns in turns_of_learning(config).items()
                    ),
                ),
                training_threads=config.training_threads,
                inference_threads=config.inference_threads,
                seed=derive_seed(config.seed, "training"),
            ),
            source_replay=load_source_replay(
                config, run_folder, num_classes=num_classes, feature_shapes=feature_shapes
            ),
            compute=find_compute(config.device, config.precision),
        )
        if config.network.start is not None:
            trainer.load_weights(read_tensors(run_folder / config.network.start)[0])
    except MENDABLE as error:
        raise CloudError(f"can't build the cloud's network: {error}") from error
    return trainer
