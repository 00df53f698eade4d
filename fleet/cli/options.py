"""The command line's options that override a scenario: one table for every command that takes a scenario."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloud_server.algorithms.table import ALGORITHMS
from cloud_server.config import DEVICES, PRECISIONS
from cloud_server.networks.table import NETWORK_DOOR
from datasets.catalog import LABELLED_CHOICES
from datasets.conditions import CONDITIONS
from datasets.partition import METHODS
from fleet.export.encoders import ENCODER_DOOR
from protocol.doors import FOREIGN_CHOICE
from protocol.plans import ESTIMATORS
from protocol.plans.adaptation import SUBSPACES
from protocol.plans.blackfleet import SERVINGS


@dataclass(frozen=True)
class ScenarioOption:
    """One option and the scenario key that it overrides."""

    name: str
    """As a parameter; the option is `--` and this with hyphens."""
    key: str
    """Dotted, as in a scenario file."""
    type: Any
    help: str
    by_vehicle: bool = True
    """Of an option that is repeated: whether it takes VEHICLE=VALUE, rather than one value each."""


SCENARIO_OPTIONS = (
    ScenarioOption("dataset", "dataset.name", str, f"One of {LABELLED_CHOICES}."),
    ScenarioOption(
        "data_root", "dataset.root", Path, "Folder of the data set; where to write generated frames."
    ),
    ScenarioOption(
        "test_split",
        "dataset.test_split",
        str,
        "Score the whole fleet on this split, and divide train alone: val, test, or the path of a folder.",
    ),
    ScenarioOption(
        "parts",
        "dataset.parts",
        str,
        "What a vehicle does with its frames: TRAIN/VAL/TEST in percent.",
    ),
    ScenarioOption(
        "city",
        "dataset.cities",
        list[str],
        "Use only the frames of this city (CamVid: a sequence, such as 0006R0); repeat for more.",
        by_vehicle=False,
    ),
    ScenarioOption(
        "generated_cities",
        "dataset.generated_cities",
        int,
        "Cities rendered of --dataset generated; default: one a vehicle, 8 at most.",
    ),
    ScenarioOption(
        "partition",
        "dataset.partition",
        str,
        f"Frames to vehicles: {', '.join(METHODS)}.",
    ),
    ScenarioOption(
        "alpha", "dataset.alpha", float, "Of --partition dirichlet: the smaller, the more vehicles differ."
    ),
    ScenarioOption(
        "frames_per_vehicle", "dataset.frames_per_vehicle", int, "At most so many frames of each vehicle."
    ),
    ScenarioOption(
        "fleet", "fleet", str, "The fleet's name on the broker; default: a name of its own for each run."
    ),
    ScenarioOption("vehicles", "vehicles", int, "Number of vehicles: car-01, car-02, …"),
    ScenarioOption(
        "condition",
        "conditions",
        list[str],
        "What a vehicle sees through, and how strong from 1 to 5, such as car-01=fog:3; repeat for more. "
        f"One of {', '.join(CONDITIONS)}.",
    ),
    ScenarioOption(
        "start", "start", Path, "Start from what `blackfleet pretrain` has written to this folder."
    ),
    ScenarioOption(
        "algorithm",
        "algorithm",
        str,
        f"{'; '.join(f'{row.name}: {row.title}' for row in ALGORITHMS.values())}; or package.module:name "
        f"of your own.",
    ),
    ScenarioOption(
        "fleet_vehicles",
        "evaluation.fleet_vehicles",
        int,
        "With --test-split: most vehicles whose models are scored on it, evenly spaced over the fleet.",
    ),
    ScenarioOption("rounds", "rounds", int, "Rounds; in each, every vehicle has a turn."),
    ScenarioOption(
        "image_size",
        "image_size",
        str,
        "What the encoders see, WxH in pixels; where it does not fit: the nearest.",
    ),
    ScenarioOption("encoder", "encoder.name", str, f"One of {ENCODER_DOOR.choices}."),
    ScenarioOption(
        "encoder_weights", "encoder.weights", Path, "Pretrained weights of --encoder: a file of a state dict."
    ),
    ScenarioOption(
        "encoder_trainable",
        "encoder.trainable",
        list[str],
        "Of an ONNX file: a weight that learns, or a pattern such as 'block3.*'; repeat for more.",
        by_vehicle=False,
    ),
    ScenarioOption(
        "vehicle_encoder",
        "encoders",
        list[str],
        "Another encoder of one vehicle, such as car-02=stride8-c16; repeat for more.",
    ),
    ScenarioOption(
        "encoder_mode", "encoder.mode", str, "How changed weights run: bind, rebuild, or auto: the faster."
    ),
    ScenarioOption("network", "network.name", str, f"The cloud's network: one of {NETWORK_DOOR.choices}."),
    ScenarioOption(
        "network_weights",
        "network.weights",
        Path,
        "Pretrained weights of --network: a folder (segformer-…) or a file of a state dict (lite0-unet).",
    ),
    ScenarioOption(
        "device", "device", str, f"What the cloud computes on: {', '.join(DEVICES)}; auto: CUDA if it works."
    ),
    ScenarioOption(
        "precision", "precision", str, f"Of the cloud's convolutions and products: {', '.join(PRECISIONS)}."
    ),
    ScenarioOption("bits", "coding.bits", int, "Bits of a feature element: 32, 8, 6, 4, 3 or 2."),
    ScenarioOption(
        "frame_bytes",
        "coding.frame_bytes",
        int,
        "Most bytes of a frame's features: each channel gets as many bits as fit, --bits at most.",
    ),
    ScenarioOption(
        "foo_epochs",
        "first_order.epochs",
        int,
        "Passes over the train frames in a turn, by first-order steps.",
    ),
    ScenarioOption(
        "upload_frames",
        "uploads.train_frames",
        int,
        "blackfleet, BlackFed, frozen: at most so many train frames uploaded in a turn, others in the next.",
    ),
    ScenarioOption(
        "upload_val_frames",
        "uploads.val_frames",
        int,
        "Not fedavg: at most so many validation frames uploaded in a turn.",
    ),
    ScenarioOption(
        "train_labels",
        "uploads.train_labels",
        str,
        "Not fedavg: size of the train labels that are sent: input, or logits: the same run in fewer bytes.",
    ),
    ScenarioOption(
        "replay_steps",
        "first_order.replay_steps",
        int,
        "Steps on features uploaded earlier that follow each first-order step.",
    ),
    ScenarioOption(
        "cache_frames", "first_order.cache_frames", int, "Most frames whose features are kept for them."
    ),
    ScenarioOption(
        "zoo_epochs",
        "zeroth_order.epochs",
        int,
        "BlackFed: passes over the train frames in a turn, by queries.",
    ),
    ScenarioOption(
        "zoo_batches",
        "zeroth_order.batches",
        int,
        "BlackFed: at most so many batches in such a pass; 0 = all.",
    ),
    ScenarioOption(
        "queries", "spsa.queries", int, "BlackFed: two-sided SPSA queries averaged for one update."
    ),
    ScenarioOption(
        "warm_up_epochs",
        "local_loss.warm_up_epochs",
        int,
        "blackfleet: passes over the train frames on the vehicle before its first upload.",
    ),
    ScenarioOption(
        "local_epochs",
        "local_loss.epochs",
        int,
        "blackfleet: passes over the train frames on the vehicle in each round.",
    ),
    ScenarioOption(
        "weight_power",
        "local_loss.weight_power",
        float,
        "blackfleet: how much the cloud's loss maps weight a vehicle's own loss; 0 = not at all.",
    ),
    ScenarioOption(
        "serving",
        "blackfleet.serving",
        str,
        f"blackfleet: which weights predict for a vehicle: {', '.join(SERVINGS)}.",
    ),
    ScenarioOption(
        "estimator",
        "zeroth_order.estimator",
        str,
        f"BlackFed: from losses to gradients: {', '.join(ESTIMATORS)}, {FOREIGN_CHOICE}.",
    ),
    ScenarioOption(
        "subspace",
        "adaptation.subspace",
        str,
        f"What of an encoder learns: {', '.join(SUBSPACES)} (film: each channel's scale and bias).",
    ),
    ScenarioOption(
        "share_encoder",
        "sharing.encoder",
        str,
        "One encoder for the fleet: none; weights: what learns crosses; seeds (BlackFed): steps do.",
    ),
    ScenarioOption(
        "objective",
        "adaptation.objective",
        str,
        "What vehicles learn from: labels, or the entropy of the cloud's predictions, without train labels.",
    ),
    ScenarioOption(
        "network_learns", "network.learns", bool, "Whether the cloud's network learns, or stays as it starts."
    ),
    ScenarioOption(
        "anchor",
        "adaptation.anchor",
        float,
        "Hold encoders back: weight of the penalty on their distance to where they started.",
    ),
    ScenarioOption(
        "source_replay",
        "network.source_replay",
        float,
        "With --start: probability that the cloud follows a training step with one on source features.",
    ),
    ScenarioOption(
        "augment_flip",
        "augmentation.flip",
        bool,
        "Mirror every other train frame, drawn anew in each pass; labels alike.",
    ),
    ScenarioOption(
        "augment_crop",
        "augmentation.crop",
        float,
        "Enlarge a random box of each train frame: smallest share of a side, from 0.1; 0 = whole frames.",
    ),
    ScenarioOption(
        "augment_jitter",
        "augmentation.jitter",
        float,
        "Vary brightness, contrast and saturation of train frames by up to this share.",
    ),
    ScenarioOption(
        "class_weights",
        "class_weights",
        str,
        "What a pixel counts by its class in every loss: none: all alike, or balanced: rare classes more.",
    ),
    ScenarioOption(
        "client_fraction",
        "federated.client_fraction",
        float,
        "fedavg: share of the vehicles that is drawn for each round.",
    ),
    ScenarioOption("seed", "seed", int, "Decides every random draw."),
    ScenarioOption(
        "broker",
        "broker",
        str,
        "auto, mosquitto, amqtt, the URL of your own broker, or memory: no broker, all in one process.",
    ),
    ScenarioOption(
        "on_failure",
        "patience.on_failure",
        str,
        "When a vehicle fails or stays away: stop, or continue without it.",
    ),
    ScenarioOption("broker_port", "broker_port", int, "Port of a broker that is started here."),
)

SCENARIO_KEYS = frozenset(option.key for option in SCENARIO_OPTIONS)
PRETRAIN_KEYS = frozenset(
    {
        "dataset.name",
        "dataset.root",
        "dataset.test_split",
        "dataset.parts",
        "dataset.cities",
        "dataset.generated_cities",
        "rounds",
        "image_size",
        "encoder.name",
        "network.name",
        "network.weights",
        "device",
        "precision",
        "coding.bits",
        "first_order.epochs",
        "augmentation.flip",
        "augmentation.crop",
        "augmentation.jitter",
        "class_weights",
        "seed",
    }
)
"""Those that decide what `blackfleet pretrain` does."""
