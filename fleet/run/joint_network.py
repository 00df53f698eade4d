"""Encoder and cloud network as one, and the trainer that has both: what learns where there is no split.

Legend: B frames, C channels, H W rows and columns, K classes, h w logit rows and columns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cloud_server.config import network_seed
from cloud_server.networks.build import build_network
from cloud_server.storage.checkpoint import CheckpointError, load_checkpoint, unflatten_state
from cloud_server.training.compute import find_compute
from cloud_server.training.trainer import PartConfig, Trainer, TrainerConfig
from fleet.errors import OperatorError
from fleet.export.coordinates import Coordinates
from fleet.export.encoders import ImageEncoder, build_encoder
from fleet.export.modules import PROJECTION
from fleet.run.beginning import begin
from fleet.run.frozen_layers import FrozenLayers, frozen_layers
from fleet.run.job import Job
from fleet.scenario import Scenario
from protocol.noise import derive_seed
from protocol.plans.white_box import WhiteBoxPlan


class JointNetwork(nn.Module):
    """Encoder and cloud network, trained in one place: image_BCHW, RGB 0 to 255, to logits_BKhw."""

    def __init__(
        self,
        encoder: nn.Module,
        network: nn.Module,
        coordinates: Coordinates | None = None,
        frozen: FrozenLayers | None = None,
    ) -> None:
        """`coordinates`: what of the encoder learns; None = all. `frozen`: what is computed but once."""
        super().__init__()
        self.encoder = encoder
        self.network = network
        self.coordinates = coordinates
        self._frozen = frozen

    def forward(self, image_BCHW: Tensor) -> Tensor:
        logits_BKhw: Tensor = self.network(self._features(image_BCHW.permute(0, 2, 3, 1)))
        return logits_BKhw

    def _features(self, image_BHWC: Tensor) -> Tensor:
        if self.coordinates is None:
            features_BCHW: Tensor = self.encoder(image_BHWC)
        elif self._frozen is None:
            features_BCHW = functional_call(self.encoder, self.coordinates.moved(), image_BHWC)
        else:
            projection = {
                name.rpartition(f"{PROJECTION}.")[2]: value
                for name, value in self.coordinates.moved().items()
            }
            features_BCHW = functional_call(self._frozen.projection, projection, self._frozen(image_BHWC))
        return features_BCHW

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """With the encoder as it is now under its own names, whatever of it learns."""
        if self.coordinates is not None:
            parameters = dict(self.encoder.named_parameters())
            with torch.no_grad():
                for name, value in self.coordinates.moved().items():
                    parameters[name].copy_(value)
        return super().state_dict(*args, **kwargs)


def joint_trainer(job: Job, *, steps: int) -> Trainer:
    """Encoder and network with the very weights that a fleet of this scenario starts from.

    The encoder takes the steps of white-box split learning, in the same subspace; `steps` are those of the
    whole run.

    Raises:
        OperatorError: the run's start is of other architectures.
        SettingError: the encoder has no such subspace.
    """
    config = job.scenario.cloud_config()
    first = config.first_order
    width, height = job.scenario.frame_size
    name = job.scenario.encoder.name
    encoder = build_encoder(name, config.seed, job.scenario.encoder_weights(name)).folded()
    network = build_network(
        config.network.name,
        feature_shape=(encoder.channels, height // encoder.stride, width // encoder.stride),
        feature_stride=encoder.stride,
        num_classes=job.source.label_space.num_classes,
        seed=network_seed(config.seed),
        weights=Path(config.network.weights) if config.network.weights else None,
    )
    begin(job, encoder, network)
    subspace = config.adaptation.of_encoder(encoder.subspace).subspace
    assert subspace is not None
    coordinates = None if subspace == "all" else Coordinates(encoder, subspace, name=name)
    learns, rate = "coordinates." if coordinates else "encoder.", config.way(WhiteBoxPlan).rate
    return Trainer(
        JointNetwork(encoder, network, coordinates, frozen_layers(encoder, subspace)),
        TrainerConfig(
            loss=first.loss,
            rate=first.rate,
            weight_decay=first.weight_decay,
            schedule=first.schedule,
            total_steps=max(1, steps),
            training_threads=config.training_threads,
            inference_threads=config.training_threads,
            seed=derive_seed(config.seed, "training"),
            parts=(PartConfig(prefix=learns, rate=rate, weight_decay=0.0),),
        ),
        compute=find_compute(config.device, config.precision),
    )


def read_trained(
    scenario: Scenario, run_folder: Path
) -> tuple[ImageEncoder, dict[str, Tensor], dict[str, Any]]:
    """What training in one place has committed: the folded encoder, the cloud network's weights, and what
    the algorithm says of itself.

    Raises:
        OperatorError: there is no checkpoint, or it is damaged.
    """
    try:
        tensors, meta = load_checkpoint(run_folder / "cloud" / "checkpoints")
    except CheckpointError as error:
        raise OperatorError(str(error)) from error
    algorithm = meta["algorithm"]
    weights: dict[str, Tensor] = unflatten_state(tensors, algorithm["trainer"])["network"]
    name = scenario.encoder.name
    encoder = build_encoder(name, scenario.seed, scenario.encoder_weights(name)).folded()
    encoder.load_state_dict(_part(weights, "encoder."))
    return encoder, _part(weights, "network."), algorithm


def _part(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
