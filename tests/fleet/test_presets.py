"""Presets: published fleets, by the numbers of frames that the real Cityscapes has."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from city_fixtures import write_cities
from numpy.typing import NDArray
from start_fixtures import QUIET
from typer.testing import CliRunner

from datasets.divided import DividedFrames
from datasets.frame import Frame, FrameRef
from datasets.labels import CITYSCAPES
from fleet.cli.app import app
from fleet.errors import OperatorError
from fleet.frames.allocation import Share, allocate, open_data
from fleet.presets import PRESETS
from fleet.scenario import load_scenario
from fleet.scenario_file import read_table

# fmt: off
TRAIN = {
    "aachen": 174, "bochum": 96, "bremen": 316, "cologne": 154, "darmstadt": 85, "dusseldorf": 221,
    "erfurt": 109, "hamburg": 248, "hanover": 196, "jena": 119, "krefeld": 99, "monchengladbach": 94,
    "strasbourg": 365, "stuttgart": 196, "tubingen": 144, "ulm": 95, "weimar": 142, "zurich": 122,
}
"""Frames of the cities of Cityscapes' train split: 2,975."""
VAL = {"frankfurt": 267, "lindau": 59, "munster": 174}
# fmt: on


class Names:
    """Frames that nobody looks at."""

    label_space = CITYSCAPES

    def __init__(self, cities: dict[str, int]) -> None:
        self.refs = tuple(
            FrameRef(f"{city}_{number:06d}_000019", city, f"{number:06d}", "000019", Path(), Path())
            for city, count in cities.items()
            for number in range(count)
        )

    def load(self, ref: FrameRef) -> Frame:
        raise AssertionError(ref)

    def load_image(self, ref: FrameRef) -> NDArray[np.uint8]:
        raise AssertionError(ref)

    def load_label(self, ref: FrameRef) -> NDArray[np.uint8]:
        raise AssertionError(ref)


def allot(preset: str, **overrides: object) -> dict[str, Share]:
    scenario = load_scenario(None, {"dataset.root": "cityscapes", **overrides}, preset=preset)
    return allocate(scenario, DividedFrames(Names(TRAIN), Names(VAL)))


def own(share: Share) -> tuple[str, ...]:
    return share.train + share.val + share.test


def cities(share: Share) -> set[str]:
    return {key.split("_")[0] for key in own(share)}


def test_feddrive_is_146_vehicles_of_10_to_45_frames_of_one_city() -> None:
    shares = allot("feddrive")
    sizes = [len(own(share)) for share in shares.values()]
    assert (len(shares), sum(sizes), len({key for s in shares.values() for key in own(s)})) == (
        146,
        2975,
        2975,
    )
    assert min(sizes) >= 10 and max(sizes) <= 45 and len(set(sizes)) > 10
    assert {len(cities(share)) for share in shares.values()} == {1}
    assert set.union(*map(cities, shares.values())) == set(TRAIN)
    assert Counter(len(share.fleet) for share in shares.values()) == {500: 18, 0: 128}
    assert shares == allot("feddrive") != allot("feddrive", **{"dataset.partition_seed": 1})


def test_feddrive_may_be_uniform() -> None:
    shares = allot("feddrive", **{"dataset.partition": "uniform"})
    assert {len(own(share)) for share in shares.values()} == {20, 21}
    assert min(len(cities(share)) for share in shares.values()) > 5


def test_blackfed_is_a_vehicle_for_each_of_18_cities() -> None:
    shares = allot("blackfed")
    assert {city for share in shares.values() for city in cities(share)} == set(TRAIN)
    assert {len(cities(share)) for share in shares.values()} == {1}
    assert sorted(len(own(share)) for share in shares.values()) == sorted(TRAIN.values())
    assert {len(share.fleet) for share in shares.values()} == {500}


def test_fleets_that_small_shares_do_not_make_are_refused() -> None:
    with pytest.raises(OperatorError, match=r"dataset cityscapes needs --data-root"):
        load_scenario(None, {}, preset="feddrive")
    with pytest.raises(Exception, match=r"must be 77 to 288 for these 2975 frames, got 300"):
        allot("feddrive", vehicles=300)
    small = DividedFrames(Names({"ulm": 47, "jena": 9}), Names(VAL))
    scenario = load_scenario(None, {"dataset.root": "x", "vehicles": 3}, preset="feddrive")
    with pytest.raises(
        Exception, match="city jena has 9 frames, which can't be divided into shares of 10 to 45"
    ):
        allocate(scenario, small)


def test_file_and_options_are_put_over_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("vehicles: 20\nrounds: 7\ndataset: {root: here, parts: 60/20/20}\n")
    scenario = load_scenario(path, {"rounds": 9}, preset="feddrive")
    assert (scenario.vehicles, scenario.rounds, scenario.dataset.partition) == (20, 9, "small-shares")
    assert scenario.dataset.parts == "60/20/20" and scenario.dataset.test_split == "val"
    with pytest.raises(
        OperatorError,
        match="unknown preset 'feddriven', expected one of: pretrained, strict, feddrive, blackfed",
    ):
        load_scenario(None, {}, preset="feddriven")


def test_presets_are_in_the_package_and_in_the_help() -> None:
    folder = Path(read_table.__code__.co_filename).parent / "presets"
    assert {path.stem for path in folder.glob("*.yaml")} == set(PRESETS)
    shown = " ".join(CliRunner().invoke(app, ["launch", "--help"], env={"COLUMNS": "200"}).stdout.split())
    assert "--preset" in shown and all(name in shown for name in PRESETS)


def test_preset_fits_a_tree_on_disk(tmp_path: Path) -> None:
    train = {f"city{number:02d}": 11 + 2 * number for number in range(6)}
    root = write_cities(tmp_path, {"train": train, "val": {"munster": 2}}, size_WH=(8, 8))
    for preset, vehicles in (("feddrive", 7), ("blackfed", 6)):
        overrides = {"dataset.root": str(root), "vehicles": vehicles, "algorithm": "frozen"}
        scenario = load_scenario(None, overrides, preset=preset)
        shares = allocate(scenario, open_data(scenario, tmp_path, QUIET))
        assert {len(cities(share)) for share in shares.values()} == {1}
        assert sum(len(own(share)) for share in shares.values()) == sum(train.values())
        assert [len(share.fleet) for share in shares.values()] == [2] + [0] * (vehicles - 1)
