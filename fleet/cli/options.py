"""The command line's options that override a scenario: one table for every command that takes a scenario."""

from __future__ import annotations

from pathlib import Path

from cloud_server.algorithms.table import ALGORITHMS
from cloud_server.config import DEVICES, ON_FAILURE, PRECISIONS
from cloud_server.networks.table import NETWORK_DOOR, NETWORKS
from datasets.catalog import LABELLED, LABELLED_CHOICES
from datasets.conditions import CONDITIONS
from datasets.partition import METHODS
from edge_client.local.network import TRAINING_DEVICES
from fleet.broker import MEMORY_BUS, OWN_BROKERS
from fleet.cli.option import OptionGroup, ScenarioOption
from fleet.cli.options_of_learning import GROUPS_OF_LEARNING
from fleet.export.encoders import ENCODER_DOOR, ENCODERS
from fleet.simulation.devices import DEVICES as SIMULATED_DEVICES
from fleet.simulation.links import LINKS
from fleet.simulation.settings import TIMES

FIRST = OptionGroup(
    "",
    (
        ScenarioOption("dataset", "dataset.name", str, f"One of {LABELLED_CHOICES}.", choices=LABELLED),
        ScenarioOption(
            "data_root", "dataset.root", Path, "Folder of the data set; where to write generated frames."
        ),
        ScenarioOption("vehicles", "vehicles", int, "Number of vehicles: car-01, car-02, …"),
        ScenarioOption(
            "algorithm",
            "algorithm",
            str,
            f"{'; '.join(f'{row.name}: {row.title}' for row in ALGORITHMS.values())}; or package.module:name "
            f"of your own.",
            choices=tuple(ALGORITHMS),
        ),
        ScenarioOption("rounds", "rounds", int, "Rounds; in each, every vehicle has a turn."),
        ScenarioOption("seed", "seed", int, "Decides every random draw."),
    ),
)
FRAMES = OptionGroup(
    "Frames, and who gets which",
    (
        ScenarioOption(
            "partition",
            "dataset.partition",
            str,
            f"Frames to vehicles: {', '.join(METHODS)}.",
            choices=tuple(METHODS),
        ),
        ScenarioOption(
            "alpha",
            "dataset.alpha",
            float,
            "Of --partition dirichlet: the smaller, the more vehicles differ.",
        ),
        ScenarioOption(
            "frames_per_vehicle", "dataset.frames_per_vehicle", int, "At most so many frames of each vehicle."
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
            "parts",
            "dataset.parts",
            str,
            "What a vehicle does with its frames: TRAIN/VAL/TEST in percent.",
        ),
        ScenarioOption(
            "test_split",
            "dataset.test_split",
            str,
            "Score the whole fleet on this split, and divide train alone: val, test, or a folder's path.",
            choices=("val", "test"),
        ),
        ScenarioOption(
            "fleet_vehicles",
            "evaluation.fleet_vehicles",
            int,
            "With --test-split: most vehicles whose models are scored on it, evenly spaced over the fleet.",
        ),
        ScenarioOption(
            "evaluate_vehicles",
            "evaluation.vehicles",
            int,
            "Most vehicles that are tested at the start and the end, evenly spaced over the fleet.",
        ),
        ScenarioOption(
            "image_size",
            "image_size",
            str,
            "What the encoders see, WxH in pixels; where it does not fit: the nearest.",
        ),
        ScenarioOption(
            "condition",
            "conditions",
            list[str],
            "What a vehicle sees through, and how strong from 1 to 5, such as car-01=fog:3; repeat for more. "
            f"One of {', '.join(CONDITIONS)}.",
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
    ),
)
MODELS = OptionGroup(
    "Encoders and the cloud's network",
    (
        ScenarioOption(
            "encoder", "encoder.name", str, f"One of {ENCODER_DOOR.choices}.", choices=tuple(ENCODERS)
        ),
        ScenarioOption(
            "encoder_weights",
            "encoder.weights",
            Path,
            "Pretrained weights of --encoder: a file of a state dict.",
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
            "provider",
            "encoder.provider",
            str,
            "What encoders run on: cpu, cuda, tensorrt, or another that ONNX Runtime has here; auto: CUDA "
            "where it gives what the CPU gives. With options of its own: cuda:device_id=1.",
            choices=("auto", "cpu", "cuda", "tensorrt"),
        ),
        ScenarioOption(
            "training_device",
            "encoder.training_device",
            str,
            "What vehicles train the whole network on, where they do (fedavg): cpu, or cuda.",
            choices=TRAINING_DEVICES,
        ),
        ScenarioOption(
            "encoder_mode",
            "encoder.mode",
            str,
            "How changed weights run: bind, rebuild, or auto: rebuild on the CPU, elsewhere the faster.",
            choices=("auto", "bind", "rebuild"),
        ),
        ScenarioOption(
            "network",
            "network.name",
            str,
            f"The cloud's network: one of {NETWORK_DOOR.choices}.",
            choices=tuple(NETWORKS),
        ),
        ScenarioOption(
            "network_weights",
            "network.weights",
            Path,
            "Pretrained weights of --network: a folder (segformer-…) or a file of a state dict (lite0-unet).",
        ),
        ScenarioOption(
            "device",
            "device",
            str,
            f"What the cloud computes on: {', '.join(DEVICES)}; auto: CUDA if it works.",
            choices=DEVICES,
        ),
        ScenarioOption(
            "precision",
            "precision",
            str,
            f"Of the cloud's convolutions and products: {', '.join(PRECISIONS)}.",
            choices=PRECISIONS,
        ),
    ),
)
MACHINES = OptionGroup(
    "Broker and processes",
    (
        ScenarioOption(
            "broker",
            "broker",
            str,
            "auto, mosquitto, amqtt, the URL of your own broker, or memory: no broker, all in one process.",
            choices=(*OWN_BROKERS, MEMORY_BUS),
        ),
        ScenarioOption("broker_port", "broker_port", int, "Port of a broker that is started here."),
        ScenarioOption(
            "fleet", "fleet", str, "The fleet's name on the broker; default: a name of its own for each run."
        ),
        ScenarioOption(
            "on_vehicle_failure",
            "patience.on_failure",
            str,
            "When a vehicle does not join, fails or stays away: continue without it, readmit it when it is "
            "back, wait for it, or stop.",
            choices=ON_FAILURE,
        ),
    ),
)

SIMULATED = OptionGroup(
    "Simulated links, devices and time",
    (
        ScenarioOption(
            "time",
            "simulation.time",
            str,
            "virtual: whoever waits skips to what happens next; real: with a link or device, all wait.",
            choices=TIMES,
        ),
        ScenarioOption(
            "link",
            "simulation.link",
            str,
            f"What lies between vehicles and broker: {', '.join(LINKS)}, or one of --profiles.",
            choices=tuple(LINKS),
        ),
        ScenarioOption(
            "vehicle_link",
            "simulation.links",
            list[str],
            "Another link of one vehicle, such as car-02=3g; repeat for more.",
        ),
        ScenarioOption(
            "profile",
            "simulation.profile",
            str,
            f"What vehicles compute on: {', '.join(SIMULATED_DEVICES)}, one of --profiles, or a mix such as "
            "orin-nano:60,agx-orin:30,car-cpu:10.",
            choices=tuple(SIMULATED_DEVICES),
        ),
        ScenarioOption(
            "cloud_profile",
            "simulation.cloud",
            str,
            "What the cloud computes on in simulated time.",
            choices=tuple(SIMULATED_DEVICES),
        ),
        ScenarioOption(
            "availability",
            "simulation.availability",
            str,
            "When vehicles have a link: always, windows:0-600,900-, markov:THERE/AWAY in seconds on average, "
            "or a CSV file.",
        ),
        ScenarioOption(
            "profiles", "simulation.profiles", Path, "YAML file with devices and links of your own."
        ),
    ),
)

OPTION_GROUPS = (FIRST, FRAMES, MODELS, *GROUPS_OF_LEARNING, MACHINES, SIMULATED)
"""In the order of the help."""
SCENARIO_OPTIONS = tuple(option for group in OPTION_GROUPS for option in group.options)
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
