"""Weather on vehicles' frames: from the scenario to the pixels that an encoder sees."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from fleet_fixtures import IMAGE_SIZE, World
from rich.console import Console

from datasets.catalog import open_dataset
from datasets.conditions import Condition, apply_condition
from edge_client.frames import FrameCache, Sight, VehicleFrames
from fleet.cli.scenario_options import with_scenario_options
from fleet.errors import OperatorError
from fleet.frames.allocation import allocate, sights
from fleet.run.launch import launch
from fleet.scenario import DatasetPart, EncoderPart, Scenario, load_scenario
from protocol.plans.first_order import FirstOrder

_WEATHER = {"car-01": "fog:3", "car-02": "night:2"}


@pytest.fixture
def scenario(tiny_world: World) -> Scenario:
    return Scenario(
        algorithm="centralized",
        vehicles=3,
        rounds=1,
        image_size="64x48",
        cores=1,
        conditions=_WEATHER,
        encoder=EncoderPart(name="stride8-c4", mode="rebuild"),
        dataset=DatasetPart(name="camvid", root=str(tiny_world.data_root), partition="uniform"),
        first_order=FirstOrder(epochs=1, batch_size=4),
    )


def test_vehicle_sees_its_frames_resized_and_then_through_its_weather(tiny_world: World) -> None:
    cache = FrameCache(open_dataset("camvid", tiny_world.data_root), IMAGE_SIZE)
    key, other, *_ = (ref.key for ref in cache.source.refs)
    sight = Sight(Condition("fog", 3), seed=5)
    frames = VehicleFrames(cache, {"train": (key,), "ood": (other,)}, {key: sight})
    clear_HWC, label_HW = cache.resized(key)
    expected_HWC = apply_condition(clear_HWC, "fog", 3, 5, key)
    [seen_HWC] = frames.images([0])
    assert np.array_equal(seen_HWC, expected_HWC)
    assert not np.array_equal(seen_HWC, clear_HWC)
    assert np.array_equal(frames.label(0), label_HW)
    assert np.array_equal(frames.images([1])[0], cache.resized(other)[0])


def test_frames_of_others_are_seen_through_the_weather_of_their_owners(
    scenario: Scenario, tiny_world: World
) -> None:
    source = open_dataset("camvid", tiny_world.data_root)
    shares = allocate(scenario, source)
    by_key = sights(shares)
    assert {by_key[key].condition for key in shares["car-03"].ood} == set(_WEATHER.values())
    assert not by_key.keys() & set(shares["car-03"].train)
    assert shares["car-01"].sight != shares["car-02"].sight
    assert allocate(scenario, source) == shares
    again = allocate(msgspec.structs.replace(scenario, seed=1), source)["car-01"].sight
    assert again is not None
    assert again.seed != by_key[shares["car-01"].train[0]].seed


def test_launch_writes_down_the_weather_and_shows_it(scenario: Scenario, tmp_path: Path) -> None:
    clear = msgspec.structs.replace(scenario, conditions={})
    for name, chosen in {"weather": scenario, "clear": clear}.items():
        launch(chosen, tmp_path / name, resume=False, console=Console(quiet=True))
    vehicles = json.loads((tmp_path / "weather" / "partition.json").read_text())["vehicles"]
    assert {car: entry["condition"] for car, entry in vehicles.items()} == {**_WEATHER, "car-03": None}
    for car in vehicles:
        [path, *_] = sorted((tmp_path / "weather" / "overlays" / car).glob("*.png"))
        here, there = (
            cv2.imread(str(tmp_path / name / path.relative_to(tmp_path / "weather")))
            for name in ("weather", "clear")
        )
        panel = slice(30, 30 + 300), slice(8, 8 + 400)
        assert np.array_equal(here[panel], there[panel]) == (car == "car-03")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conditions": {"car-09": "fog"}}, "conditions names vehicle 'car-09', which is not in this fleet"),
        ({"conditions": {"car-01": "mist"}}, "unknown condition 'mist', expected one of: fog"),
        ({"conditions": {"car-01": "fog:9"}}, "severity of fog must be 1 to 5, got 9"),
        ({"encoders": {"car-01": "big"}}, "unknown encoder 'big', expected one of: "),
        ({"encoders": {"truck": "stride8-c4"}}, "encoders names vehicle 'truck'"),
    ],
)
def test_impossible_weather_or_encoder_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        load_scenario(None, change)


def test_options_assign_weather_and_encoders_by_vehicle() -> None:
    given: list[Scenario] = []

    @with_scenario_options(without={"seed"})
    def command(*, scenario: Scenario) -> None:
        given.append(scenario)

    names = [name for name in command.__annotations__ if name != "scenario_file"]
    assert "seed" not in names
    options = dict.fromkeys(names)
    options |= {"condition": ["car-01=fog:3", "car-02=night"], "vehicle_encoder": ["car-03=stride8-c16"]}
    command(scenario_file=None, **options)
    assert given[0].conditions == {"car-01": "fog:3", "car-02": "night"}
    assert given[0].encoders == {"car-03": "stride8-c16"}
    assert len(given[0].cloud_config().feature_shapes or ()) == 2
    with pytest.raises(OperatorError, match="--condition must be VEHICLE=VALUE such as car-01=…, got 'fog'"):
        command(scenario_file=None, **{**options, "condition": ["fog"]})
