"""A scenario: everything that decides what a run computes, in one YAML file or from the built-in defaults."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from cloud_server.algorithms.table import algorithm_row
from cloud_server.config import CloudConfig, NetworkConfig, RunSettings
from cloud_server.unknown_keys import explain
from datasets.catalog import LABELLED, LABELLED_CHOICES, classes_of, find_dataset
from datasets.class_file import CLASSES_NAME
from datasets.conditions import Condition
from datasets.labels import LabelSpace
from datasets.partition import parse_parts
from evaluation.latest import evenly
from fleet.broker import MEMORY_BUS
from fleet.cores import usable_cores
from fleet.errors import OperatorError
from fleet.export.encoders import (
    ImageEncoder,
    architecture,
    build_encoder,
    check_encoder_name,
    fitting_size,
)
from fleet.many_vehicles import put_for_many
from fleet.presets import find_preset
from fleet.privacy import PrivacyPart
from fleet.scenario_file import put, put_over, read_table, write_table
from fleet.scenario_models import EncoderPart, LocalHeadPart
from fleet.simulation.patience import put_for_absences
from fleet.simulation.settings import SimulationPart, read_part
from fleet.start import FEATURES_NAME, NETWORK_NAME
from fleet.start import FOLDER_NAME as START_FOLDER
from protocol.codec.bits import check_frame_bytes
from protocol.doors import is_foreign
from protocol.errors import SettingError
from protocol.plans import PLANS
from protocol.plans.checks import Section

_OF_THE_BROKER = ("broker", "broker_port")

RENDERED_TEST_SPLIT = "val"
"""The test split that is drawn with a data set that isn't recorded."""


class DatasetPart(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The frames."""

    section = "dataset"

    name: str = "generated"
    """A row of `datasets.catalog.DATASETS` that has labels, or `package.module:name` of your own."""
    root: str | None = None
    """Folder of the data set; for `generated` where to write it (default: inside the run folder)."""
    test_split: str | None = None
    """What the whole fleet is scored on at the end, and nobody trains on: a split of the data set, `val` or
    `test`, or the path of a folder in the same layout. Vehicles then divide the split `train` alone; None =
    they divide all there is."""
    parts: str = "70/10/20"
    """What each vehicle does with its frames: percent that it trains on, that are for validation, and that it
    is tested on; each part has at least one frame."""
    cities: tuple[str, ...] | None = None
    """Only frames of these cities go to vehicles (CamVid: sequences, such as 0006R0); None = all."""
    partition: str = "city"
    """How frames go to vehicles: a row of `datasets.partition.METHODS`."""
    partition_seed: int = 0
    """Who gets which frames. Apart from `seed`, so that runs of several seeds have the same partition."""
    alpha: float = 0.5
    """`dirichlet` only: concentration; the smaller, the more the vehicles differ."""
    frames_per_vehicle: int | None = None
    """At most so many frames of each vehicle, evenly spaced; None = all."""
    frames_per_sequence: int | None = None
    """`generated` only: frames rendered of each city's drive; None = 60, or as many as the vehicles need."""
    generated_cities: int | None = None
    """`generated` only: cities rendered; None = as many as vehicles, 8 at most."""

    def __post_init__(self) -> None:
        named = self.name in LABELLED or is_foreign(self.name)
        if not named or not find_dataset(self.name).is_labelled:
            raise SettingError(f"dataset must be one of {LABELLED_CHOICES}, with labels; got {self.name!r}")
        if self.root is None and not self.is_rendered:
            raise SettingError(f"dataset {self.name} needs --data-root, the folder it lies in")
        parse_parts(self.parts)
        if self.is_rendered and self.names_split and self.test_split != RENDERED_TEST_SPLIT:
            raise SettingError(
                f"test_split of {self.name} must be {RENDERED_TEST_SPLIT}, which is drawn beside train, or "
                f"the path of a folder, got {self.test_split!r}"
            )
        if not 0 <= self.partition_seed < 2**63:
            raise SettingError(f"partition_seed must be at least 0 and below 2^63, got {self.partition_seed}")
        if self.frames_per_vehicle is not None and self.frames_per_vehicle < 3:
            raise SettingError(
                f"frames_per_vehicle must be at least 3 (train, val, test), got {self.frames_per_vehicle}"
            )
        if self.frames_per_sequence is not None and self.frames_per_sequence < 1:
            raise SettingError(f"frames_per_sequence must be at least 1, got {self.frames_per_sequence}")
        if self.generated_cities is not None and self.generated_cities < 1:
            raise SettingError(f"generated_cities must be at least 1, got {self.generated_cities}")
        if self.cities is not None and not self.cities:
            raise SettingError("cities names no city; name at least one, or leave it out for all")

    @property
    def label_space(self) -> LabelSpace:
        """The classes of its labels.

        Raises:
            DatasetError: the folder says what they are, and it is missing or malformed.
        """
        classes = classes_of(self.name, Path(self.root or ""))
        assert classes is not None, self.name
        return classes

    @property
    def classes_name(self) -> str:
        """By which the cloud finds the classes: what the run keeps of them, where the folder has its own."""
        classes = find_dataset(self.name).label_space
        return classes.name if classes else CLASSES_NAME

    @property
    def names_split(self) -> bool:
        """Whether `test_split` is a split of the data set itself, not a path."""
        splits = find_dataset(self.name).splits
        return splits is not None and self.test_split in splits.names

    @property
    def test_folder(self) -> Path | None:
        """The folder of the test split, if it is one of its own."""
        folder = None if self.test_split is None or self.names_split else Path(self.test_split)
        return folder if folder is not None and folder.is_dir() else None

    @property
    def is_rendered(self) -> bool:
        """Whether the frames are drawn where there are none."""
        return find_dataset(self.name).render is not None


class EvaluationPart(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the result is measured."""

    section = "evaluation"

    ood_frames: int | None = None
    """Test frames of other vehicles, evenly spaced over them, that each vehicle is tested on at the end;
    None = 40, in a fleet of more than 25 vehicles 1,000 for all of them together."""
    fleet_vehicles: int = 18
    """With a test split: most vehicles whose encoder and network are scored on all of it, evenly spaced over
    the fleet. Of an algorithm that ends with one model for all, one of each encoder is."""
    vehicles: int | None = None
    """At most so many vehicles, evenly spaced over the fleet, are tested at the start and at the end, and
    tested on each other's frames; None = all."""
    overlays: int = 4
    """Colour overlays of test frames drawn for each vehicle."""
    source_frames: int = 40
    """With a `start`: test frames of its source, evenly spaced, that each vehicle is tested on before and
    after, to measure forgetting."""

    def __post_init__(self) -> None:
        self._at_least(0, "ood_frames", "overlays", "source_frames")
        self._at_least(1, "fleet_vehicles", "vehicles")


class Scenario(RunSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run, as the operator sees it."""

    fleet: str | None = None
    """Third level of every topic; None = a name of its own for each run, `fleet-` and eight digits."""
    vehicles: int = 4
    vehicles_per_host: int | None = None
    """Vehicles that share a process; None = one each up to 8 vehicles, else as many hosts as cores."""
    image_size: str = "256x192"
    """Width x height in pixels of what the encoders see; where their strides do not divide it, they see the
    nearest size that these do."""
    broker: str = "auto"
    """`auto`, `mosquitto` or `amqtt` to run one here, the URL of yours, or `memory`: no network."""
    broker_port: int | None = None
    """Port of the broker run here; None = a free one."""
    cores: int | None = None
    """Cores to plan for; None = those that the launcher may use here."""
    start: str | None = None
    """Folder that `blackfleet pretrain` has written: what all vehicles and the cloud start from; None = from
    the seed."""
    conditions: dict[str, str] = msgspec.field(default_factory=dict)
    """What vehicles see their frames through, by id: `car-01: fog:3`; those not named see clearly."""
    encoders: dict[str, str] = msgspec.field(default_factory=dict)
    """Architectures of vehicles that run another one than `encoder.name`, by id."""
    dataset: DatasetPart = DatasetPart()
    encoder: EncoderPart = EncoderPart()
    local_head: LocalHeadPart = LocalHeadPart()
    evaluation: EvaluationPart = EvaluationPart()
    privacy: PrivacyPart = PrivacyPart()
    simulation: SimulationPart = SimulationPart()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vehicles < 1:
            raise SettingError(f"the number of vehicles must be at least 1, got {self.vehicles}")
        if self.vehicles_per_host is not None and self.vehicles_per_host < 1:
            raise SettingError(f"vehicles_per_host must be at least 1, got {self.vehicles_per_host}")
        if self.cores is not None and self.cores < 1:
            raise SettingError(f"cores must be at least 1, got {self.cores}")
        parse_image_size(self.image_size)
        for name in (self.encoder.name, *self.encoders.values()):
            check_encoder_name(name)
        for condition in self.conditions.values():
            Condition.parse(condition)
        if self.start is not None:
            for key in ("weights", "start", "source_features"):
                if getattr(self.network, key) is not None:
                    raise SettingError(f"start brings the network's weights; remove network.{key}")
        for key, named in (
            ("conditions", self.conditions),
            ("encoders", self.encoders),
            ("simulation.links", self.simulation.links),
            ("simulation.budgets", self.simulation.budgets),
            ("simulation.cells", self.simulation.cells),
        ):
            strangers = sorted(set(named) - set(self.vehicle_ids))
            if strangers:
                raise SettingError(
                    f"{key} names vehicle {strangers[0]!r}, which is not in this fleet "
                    f"({self.vehicle_ids[0]} to {self.vehicle_ids[-1]})"
                )
        self.cloud_config()
        if self.coding.frame_bytes is not None:
            for shape in self._feature_shapes():
                check_frame_bytes(self.coding.frame_bytes, shape)

    @property
    def fleet_id(self) -> str:
        """The fleet's name, also before a run has got one of its own."""
        return self.fleet or "fleet"

    @property
    def vehicle_ids(self) -> tuple[str, ...]:
        """`car-01`, `car-02`, …"""
        width = max(2, len(str(self.vehicles)))
        return tuple(f"car-{number:0{width}d}" for number in range(1, self.vehicles + 1))

    @property
    def evaluated_vehicles(self) -> tuple[str, ...]:
        """Those that are tested at the start and at the end."""
        ids, most = self.vehicle_ids, self.evaluation.vehicles
        return ids if most is None else tuple(ids[place] for place in evenly(len(ids), most))

    @property
    def core_count(self) -> int:
        """Cores to plan for."""
        return self.cores or usable_cores()

    @property
    def per_host(self) -> int:
        """Vehicles that share a process."""
        if self.simulation.is_on:
            return self.vehicles  # they wait by one clock, and share sessions
        if self.vehicles_per_host is not None:
            return self.vehicles_per_host
        return 1 if self.vehicles <= 8 else -(-self.vehicles // self.core_count)

    def cloud_config(self) -> CloudConfig:
        """The cloud's part of the scenario, with thread counts that leave cores to the vehicles at work."""
        shared = {name: getattr(self, name) for name in RunSettings.__struct_fields__}
        row = algorithm_row(self.algorithm)
        return CloudConfig(
            **{**shared, "network": self._started_network()},
            fleet=self.fleet_id,
            vehicles=self.vehicle_ids,
            evaluated=None if self.evaluation.vehicles is None else self.evaluated_vehicles,
            dataset=self.dataset.name,
            label_space=self.dataset.classes_name,
            feature_shapes=self._feature_shapes() if self.encoders else None,
            training_threads=max(1, self.core_count // 2) if row.trains_in_turns else self.core_count,
            inference_threads=max(1, self.core_count // 2),
            parallel_turns=self.vehicles
            if self.simulation.is_on  # each has a computer of its own
            else max(1, self.core_count - (not row.cloud_rests)),
        )

    def _started_network(self) -> NetworkConfig:
        """The network's settings, with the files of the start in the run folder."""
        if self.start is None:
            return self.network
        return msgspec.structs.replace(
            self.network,
            start=f"{START_FOLDER}/{NETWORK_NAME}",
            source_features=f"{START_FOLDER}/{FEATURES_NAME}",
        )

    def encoder_weights(self, name: str) -> Path | None:
        """The file of weights of an encoder in use: `encoder.weights` is of `encoder.name` alone."""
        weights = self.encoder.weights if name == self.encoder.name else None
        return Path(weights) if weights else None

    def architecture(self, name: str) -> ImageEncoder:
        """An encoder in use, not yet initialised."""
        return architecture(name, self.encoder_weights(name), self._trainable(name))

    def build_encoder(self, name: str) -> ImageEncoder:
        """An encoder in use, as it begins before it has seen a picture."""
        return build_encoder(name, self.seed, self.encoder_weights(name), self._trainable(name))

    def _trainable(self, name: str) -> tuple[str, ...]:
        """What learns of an ONNX file: `encoder.trainable` is of `encoder.name` alone."""
        return self.encoder.trainable if name == self.encoder.name else ()

    @property
    def frame_size(self) -> tuple[int, int]:
        """(width, height) in pixels that frames are resized to: the nearest to `image_size` that divides into
        feature cells of every encoder that is named."""
        names = {self.encoder.name, *self.encoders.values()}
        strides = (self.architecture(name).stride for name in names)
        return fitting_size(parse_image_size(self.image_size), math.lcm(*strides))

    def _feature_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """Those of the encoders in use, in the vehicles' order, each once."""
        width, height = self.frame_size
        names = (self.encoders.get(vehicle, self.encoder.name) for vehicle in self.vehicle_ids)
        encoders = (self.architecture(name) for name in dict.fromkeys(names))
        shapes = ((e.channels, height // e.stride, width // e.stride) for e in encoders)
        return tuple(dict.fromkeys(shapes))


def parse_image_size(text: str) -> tuple[int, int]:
    """(width, height) of `WxH`.

    Raises:
        SettingError: it is not two positive numbers.
    """
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not match or "0" in match.groups():
        raise SettingError(f"image size must be WIDTHxHEIGHT in pixels, for instance 256x192, got {text!r}")
    return int(match.group(1)), int(match.group(2))


def load_scenario(
    path: Path | None,
    overrides: Mapping[str, Any],
    *,
    kept: Path | None = None,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Scenario:
    """Read a scenario file (None = the built-in defaults) and put options over it.

    `overrides` has dotted keys (`dataset.root`); None means not given. `settings` is a table as a file holds
    it, put over the file's. `preset` is one of ours that the file
    is put over. `kept` is the scenario file of a run that is to go on: the others are put over it, but for
    its broker, which need not be there any more.

    Raises:
        OperatorError: the file can't be read, or a key or value doesn't fit; the message names it.
    """
    content: dict[str, Any] = read_table(kept) if kept is not None else {}
    for key in _OF_THE_BROKER:
        content.pop(key, None)
    if preset is not None:
        put_over(content, read_table(find_preset(preset)))
    if path is not None:
        put_over(content, read_table(path))
    put_over(content, settings or {})
    for key, value in overrides.items():
        if value is not None:
            put(content, key, value)
    if read_part(content.get("simulation")).is_on and content.get("broker", "auto") == "auto":
        content["broker"] = MEMORY_BUS  # the one bus on which links are simulated
    if kept is None:
        put_for_many(content)
        put_for_absences(content)
    try:
        return msgspec.convert(content, Scenario)
    except msgspec.ValidationError as error:
        raise OperatorError(
            f"scenario{f' {path}' if path else ''}: {explain(str(error), Scenario)}"
        ) from error


def save_scenario(scenario: Scenario) -> str:
    """The scenario as YAML that `load_scenario` reads back to the same."""
    content = msgspec.to_builtins(scenario)
    for section in PLANS:
        del content[section]["type"]  # which of them it is says the key
    return write_table(dict(sorted(content.items(), key=lambda item: isinstance(item[1], dict))))
