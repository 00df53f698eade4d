"""Which frames a run uses: opens or renders the data set, and gives frames to vehicles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from cloud_server.algorithms.table import algorithm_row
from datasets.conditions import Condition
from datasets.divided import open_frames, owned_frames, split_keys
from datasets.frame import DatasetError, FrameSource
from datasets.partition import FrameSplit, parse_parts, partition_frames
from datasets.subset import CitySubset
from edge_client.host import SightConfig
from fleet.frames.rendering import render_missing
from fleet.scenario import Scenario
from fleet.start import StartSpec
from protocol.codec.labels import content_hash
from protocol.noise import derive_seed

_OOD_FRAMES = 40
"""Test frames of other vehicles that a vehicle is tested on, where the scenario names no number, ..."""
_OOD_FRAMES_IN_ALL = 1000
"""... and in a large fleet all vehicles together."""


_Key = TypeVar("_Key")


@dataclass(frozen=True, kw_only=True)
class Share:
    """One vehicle's frames, by key, and what it sees them through."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    ood: tuple[str, ...]
    """Test frames of other vehicles that this one is tested on."""
    encoder: str
    """Name of its encoder."""
    sight: SightConfig | None
    """What it sees its frames through; None = clear."""
    source: tuple[str, ...] = ()
    """Frames of the domain that it was pretrained on, which it is tested on, seen clearly."""
    fleet: tuple[str, ...] = ()
    """The test split of the whole fleet, seen clearly; none where this vehicle's model isn't scored on it."""

    def splits(self) -> dict[str, tuple[str, ...]]:
        """Frame keys by split, as a vehicle's settings hold them."""
        splits = {"train": self.train, "val": self.val, "test": self.test, "ood": self.ood}
        rare = {"source": self.source, "fleet": self.fleet}
        return {**splits, **{split: keys for split, keys in rare.items() if keys}}


def data_folder(scenario: Scenario, run_folder: Path) -> Path:
    """Where the data set of a run lies."""
    return Path(scenario.dataset.root) if scenario.dataset.root else run_folder / "data"


def open_data(scenario: Scenario, run_folder: Path, console: Console) -> FrameSource:
    """Open the data set of a run, see `datasets.divided.open_frames`; a generated one is rendered, or
    completed, first.

    Raises:
        DatasetError, SettingError, OSError: it is missing, malformed or can't be written.
    """
    root = data_folder(scenario, run_folder)
    render_missing(scenario, root, console)
    return open_frames(scenario.dataset.name, root, scenario.dataset.test_split)


def source_test_frames(scenario: Scenario, start: StartSpec, source: FrameSource) -> tuple[str, ...]:
    """The frames on which forgetting is measured, looked up in the whole data set.

    Raises:
        DatasetError: the data set lacks one of them, or has another one of the same name; or the start knows
            the test split.
    """
    tested = frozenset(split_keys(source))
    known = next((key for key in (*start.val, *start.test) if key in tested), None)
    if known is not None:
        raise DatasetError(
            f"the start was pretrained on the whole data set, frame {known} of the test split with it; "
            f"pretrain with the same --test-split"
        )
    refs = {ref.key: ref for ref in source.refs}
    digests = dict(zip(start.test, start.test_label_digests, strict=True))
    keys = evenly_spaced(start.test, scenario.evaluation.source_frames)
    for key in keys:
        if key not in refs or content_hash(source.load_label(refs[key])).hex() != digests[key]:
            raise DatasetError(
                f"frame {key}, on which forgetting is to be measured, "
                f"{'is not in this data set' if key not in refs else 'has another label here'}; give the "
                f"data set that the start was pretrained on (--data-root), or set evaluation.source_frames "
                f"to 0"
            )
    return keys


def allocate(
    scenario: Scenario, source: FrameSource, *, source_keys: tuple[str, ...] = ()
) -> dict[str, Share]:
    """Each vehicle's share of the frames, a function of the scenario and the data set alone.

    `source_keys` are those of `source_test_frames`.

    Raises:
        SettingError, DatasetError: see `partition_frames` and `CitySubset`.
    """
    cities, owned = scenario.dataset.cities, owned_frames(source)
    partition = partition_frames(
        owned if cities is None else CitySubset(owned, cities),
        scenario.vehicle_ids,
        method=scenario.dataset.partition,
        fractions=parse_parts(scenario.dataset.parts),
        seed=scenario.dataset.partition_seed,
        alpha=scenario.dataset.alpha,
    )
    most = scenario.dataset.frames_per_vehicle
    if most is not None:
        partition = {vehicle: _thin(frames, most) for vehicle, frames in partition.items()}
    ood = _ood_frames(scenario, partition)
    scored, tested = scored_on_split(scenario), split_keys(source)
    return {
        vehicle: Share(
            train=frames.train,
            val=frames.val,
            test=frames.test,
            ood=ood.get(vehicle, ()),
            encoder=vehicle_encoder(scenario, vehicle),
            sight=vehicle_sight(scenario, vehicle),
            source=source_keys,
            fleet=tested if vehicle in scored else (),
        )
        for vehicle, frames in partition.items()
    }


def scored_on_split(scenario: Scenario) -> tuple[str, ...]:
    """The vehicles whose encoder and network are scored on the test split, if there is one."""
    vehicles = scenario.vehicle_ids
    if algorithm_row(scenario.algorithm).ends_with_one_model(scenario):
        by_encoder = {vehicle_encoder(scenario, vehicle): vehicle for vehicle in reversed(vehicles)}
        vehicles = tuple(vehicle for vehicle in vehicles if vehicle in by_encoder.values())
    return evenly_spaced(vehicles, scenario.evaluation.fleet_vehicles)


def sights(shares: Mapping[str, Share]) -> dict[str, SightConfig]:
    """By frame key, what the owner of the frame sees it through; clear frames are left out."""
    return {
        key: share.sight
        for share in shares.values()
        if share.sight is not None
        for key in share.train + share.val + share.test
    }


def evenly_spaced(keys: Sequence[_Key], count: int) -> tuple[_Key, ...]:
    """`count` of `keys` in their order, as far apart as can be; all of them if there are no more."""
    if count >= len(keys):
        return tuple(keys)
    return tuple(keys[position * len(keys) // count] for position in range(count))


def vehicle_encoder(scenario: Scenario, vehicle: str) -> str:
    """Name of a vehicle's encoder."""
    return scenario.encoders.get(vehicle, scenario.encoder.name)


def vehicle_sight(scenario: Scenario, vehicle: str) -> SightConfig | None:
    """What a vehicle of the scenario sees its frames through; None = clear."""
    text = scenario.conditions.get(vehicle)
    if text is None:
        return None
    seed = derive_seed(scenario.seed, "condition", vehicle)
    return SightConfig(condition=str(Condition.parse(text)), seed=seed)


def _thin(frames: FrameSplit, most: int) -> FrameSplit:
    """At most `most` frames, each split in proportion and with at least one."""
    total = len(frames.train) + len(frames.val) + len(frames.test)
    if total <= most:
        return frames
    val = max(1, most * len(frames.val) // total)
    test = max(1, most * len(frames.test) // total)
    return FrameSplit(
        train=evenly_spaced(frames.train, most - val - test),
        val=evenly_spaced(frames.val, val),
        test=evenly_spaced(frames.test, test),
    )


def _ood_frames(scenario: Scenario, partition: Mapping[str, FrameSplit]) -> dict[str, tuple[str, ...]]:
    """By vehicle that is tested at the end: test frames of the others that are.

    Where some stand for the fleet, and all vehicles of an encoder end with one model, one of each has them.
    """
    tested = {vehicle: partition[vehicle] for vehicle in scenario.evaluated_vehicles}
    foreign = _foreign_frames(tested, scenario.evaluation.ood_frames)
    if len(tested) < len(partition) and algorithm_row(scenario.algorithm).ends_with_one_model(scenario):
        first = {vehicle_encoder(scenario, vehicle): vehicle for vehicle in reversed(tested)}
        return {vehicle: foreign[vehicle] for vehicle in first.values()}
    return foreign


def _foreign_frames(partition: Mapping[str, FrameSplit], given: int | None) -> dict[str, tuple[str, ...]]:
    """By vehicle: test frames of the others, evenly spaced over them, `given` for each.

    None: 40 for each, but no more than 1,000 for the whole fleet. Where that is less than one each, so many
    vehicles, evenly spaced, have one.
    """
    vehicles = tuple(partition)
    counts = dict.fromkeys(vehicles, _OOD_FRAMES if given is None else given)
    if given is None and len(vehicles) * _OOD_FRAMES > _OOD_FRAMES_IN_ALL:
        counts = dict.fromkeys(vehicles, _OOD_FRAMES_IN_ALL // len(vehicles))
        if len(vehicles) > _OOD_FRAMES_IN_ALL:
            counts |= dict.fromkeys(evenly_spaced(vehicles, _OOD_FRAMES_IN_ALL), 1)
    keys = [key for frames in partition.values() for key in frames.test]
    foreign: dict[str, tuple[str, ...]] = {}
    first = 0
    for vehicle, frames in partition.items():
        # Those of the others are the keys but for this vehicle's own, which stand together.
        own, others = len(frames.test), len(keys) - len(frames.test)
        places = evenly_spaced(range(others), counts[vehicle])
        foreign[vehicle] = tuple(keys[place if place < first else place + own] for place in places)
        first += own
    return foreign
