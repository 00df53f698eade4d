"""What each way of serving would have scored after a finished blackfleet run: training knows nothing of it.

The features are computed again from the vehicles' states and the weights come from the cloud's checkpoint, so
that the scores are those of runs with the other settings. Those of the run's own setting must come out again.
Legend: n frames, C channels, H W rows and columns.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cloud_server.config import CloudConfig, network_seed
from cloud_server.networks.stems import build_shared_network
from cloud_server.run.results import RESULT_NAME
from cloud_server.storage.checkpoint import load_checkpoint, unflatten_state
from cloud_server.storage.vehicle_store import VehicleStore
from cloud_server.training.trainer import Trainer, TrainerConfig
from datasets.catalog import label_space, open_dataset
from datasets.labels import LabelSpace
from edge_client.encoder.bundle import EncoderBundle, bundle_digest
from edge_client.encoder.runtime import Encoder
from edge_client.frames import FrameCache, VehicleFrames
from edge_client.host import HostConfig, VehicleConfig
from edge_client.state import StateStore
from evaluation.scores import ConfusionMatrix
from protocol.codec.tensor import decode, encode
from protocol.noise import derive_seed
from protocol.plans.blackfleet import SERVINGS

SPLITS = ("val", "test", "ood")
Scores = dict[str, float]
"""By split: mean over vehicles of the mIoU on its frames."""


def score_servings(config: CloudConfig, hosts: Sequence[HostConfig], run_folder: Path) -> dict[str, Scores]:
    """Scores by serving, of a complete run of clear frames.

    Raises:
        AssertionError: the run's own setting does not come to the scores in its `result.json`.
        OSError, ValueError: the run folder is not complete.
    """
    tensors, meta = load_checkpoint(run_folder / "cloud" / "checkpoints")
    vehicles = [_Vehicle(config, host, vehicle) for host in hosts for vehicle in host.vehicles]
    space = label_space(config.label_space)
    network = build_shared_network(
        config.network.name,
        feature_shapes=[vehicle.bundle.spec.feature_shape for vehicle in vehicles],
        image_size=vehicles[0].bundle.spec.image_size,
        num_classes=space.num_classes,
        seed=network_seed(config.seed),
        weights=Path(config.network.weights) if config.network.weights else None,
    )
    trainer = Trainer(network, TrainerConfig(inference_threads=config.inference_threads))
    trainer.load_weights(unflatten_state(tensors, meta["algorithm"]["trainer"])["network"])
    best = VehicleStore(run_folder / "cloud" / "best")
    best.restore(meta["algorithm"]["best"])
    by_vehicle: dict[str, list[Scores]] = {serving: [] for serving in SERVINGS}
    for vehicle in vehicles:
        features = {split: vehicle.features(split) for split in SPLITS}
        for serving, scores in by_vehicle.items():
            with _serving(serving, config, trainer, best, vehicle):
                scores.append(
                    {split: vehicle.miou(split, features[split], trainer, space) for split in SPLITS}
                )
    means = {
        serving: {split: float(np.mean([score[split] for score in scores])) for split in SPLITS}
        for serving, scores in by_vehicle.items()
    }
    result = json.loads((run_folder / RESULT_NAME).read_text())
    own = means[config.blackfleet.serving]
    if (own["test"], own["ood"]) != (result["mean_local_miou"], result["mean_ood_miou"]):
        raise AssertionError(f"{run_folder} scored {result['mean_local_miou']}, here it is {own['test']}")
    return means


@contextmanager
def _serving(
    serving: str, config: CloudConfig, trainer: Trainer, best: VehicleStore, vehicle: _Vehicle
) -> Iterator[None]:
    """The trainer with the weights that would predict for the vehicle."""
    weights: Mapping[str, torch.Tensor] | None = None
    if serving == "best":
        weights = best.get(vehicle.id)
    elif serving == "statistics":
        statistics = trainer.estimate_statistics(
            vehicle.features("train"),
            batch_size=config.first_order.batch_size,
            seed=derive_seed(config.seed, "statistics", config.rounds, vehicle.id),
        )
        weights = {**trainer.weights(), **statistics}
    with trainer.borrowed_weights(weights):
        yield


class _Vehicle:
    """A vehicle as the last round left it."""

    def __init__(self, config: CloudConfig, host: HostConfig, vehicle: VehicleConfig) -> None:
        self.id = vehicle.id
        self.bundle = EncoderBundle.load(Path(vehicle.bundle))
        mode: Any = host.encoder_mode
        self._encoder = Encoder(self.bundle, mode=mode, threads=host.threads)
        states = StateStore(Path(vehicle.state), vehicle=vehicle.id, bundle_digest=bundle_digest(self.bundle))
        self._theta = states.load(config.rounds).theta
        source = open_dataset(host.dataset, Path(host.data_root))
        self._frames = VehicleFrames(FrameCache(source, self.bundle.spec.image_size), vehicle.frames)
        self._bits = config.coding.bits
        self._batch_size = config.first_order.batch_size

    def features(self, split: str) -> NDArray[np.float32]:
        """features_nCHW of a split as they arrive in the cloud."""
        indices = self._frames.splits[split]
        batches = (indices[i : i + self._batch_size] for i in range(0, len(indices), self._batch_size))
        coded = (
            encode(self._encoder.forward(self._theta, self._frames.images(batch)), self._bits)
            for batch in batches
        )
        return np.concatenate([decode(tensor, expected_shape=(None,) * 4) for tensor in coded])

    def miou(
        self, split: str, features_nCHW: NDArray[np.float32], trainer: Trainer, space: LabelSpace
    ) -> float:
        """mIoU on a split: validation at the encoder's input size, tests at that of the labels on disk."""
        matrix = ConfusionMatrix(space)
        for position, index in enumerate(self._frames.splits[split]):
            label_HW = self._frames.label(index)
            height, width = label_HW.shape
            [prediction_HW] = trainer.predict(features_nCHW[position : position + 1], (height, width))
            matrix.add(label_HW, prediction_HW)
        score = matrix.mean_iou()
        return score if math.isfinite(score) else 0.0
