"""Encoder and cloud network as one, and the trainer that has both: what learns where there is no split.

Legend: B frames, C channels, H W rows and columns, K classes, h w logit rows and columns.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from cloud_server.config import network_seed
from cloud_server.networks.build import build_network
from cloud_server.training.trainer import PartConfig, Trainer, TrainerConfig
from fleet.export.encoders import build_encoder
from fleet.run.beginning import begin
from fleet.run.job import Job
from protocol.noise import derive_seed
from protocol.plans.white_box import WhiteBoxPlan


class JointNetwork(nn.Module):
    """Encoder and cloud network, trained in one place: image_BCHW, RGB 0 to 255, to logits_BKhw."""

    def __init__(self, encoder: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.network = network

    def forward(self, image_BCHW: Tensor) -> Tensor:
        logits_BKhw: Tensor = self.network(self.encoder(image_BCHW.permute(0, 2, 3, 1)))
        return logits_BKhw


def joint_trainer(job: Job, *, steps: int) -> Trainer:
    """Encoder and network with the very weights that a fleet of this scenario starts from.

    The encoder takes the steps of white-box split learning; `steps` are those of the whole run.

    Raises:
        OperatorError: the run's start is of other architectures.
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
    return Trainer(
        JointNetwork(encoder, network),
        TrainerConfig(
            loss=first.loss,
            rate=first.rate,
            weight_decay=first.weight_decay,
            schedule=first.schedule,
            total_steps=max(1, steps),
            training_threads=config.training_threads,
            inference_threads=config.training_threads,
            seed=derive_seed(config.seed, "training"),
            parts=(PartConfig(prefix="encoder.", rate=config.way(WhiteBoxPlan).rate, weight_decay=0.0),),
        ),
    )
