"""Fleets of many vehicles: frames enough for all, bounded lines, a bounded number of foreign test frames."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rich.console import Console

from datasets.frame import Frame, FrameRef, frame_key
from datasets.labels import CITYSCAPES, LabelSpace
from edge_client.host import HostConfig, VehicleConfig
from fleet.frames.allocation import allocate, open_data
from fleet.frames.rendering import rendered_cities, rendered_frames_per_city
from fleet.run.fleet_run import _hosts_of
from fleet.scenario import Scenario, load_scenario
from fleet.show.progress import Progress
from fleet.show.summaries import movers
from protocol.atomic import write_json_atomic


class _Names:
    """A data set of which nobody reads a picture."""

    def __init__(self, scenario: Scenario) -> None:
        self._refs = tuple(_refs(rendered_cities(scenario), rendered_frames_per_city(scenario)))

    @property
    def label_space(self) -> LabelSpace:
        return CITYSCAPES

    @property
    def refs(self) -> tuple[FrameRef, ...]:
        return self._refs

    def load(self, ref: FrameRef) -> Frame:
        raise AssertionError

    def load_image(self, ref: FrameRef) -> NDArray[np.uint8]:
        raise AssertionError

    def load_label(self, ref: FrameRef) -> NDArray[np.uint8]:
        raise AssertionError


def _refs(cities: int, frames: int) -> Sequence[FrameRef]:
    names = [(f"city{city}", "000000", f"{frame:06d}") for city in range(cities) for frame in range(frames)]
    return [
        FrameRef(frame_key(*name), *name, image_path=Path("none"), label_path=None) for name in sorted(names)
    ]


# Frames ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["city", "sequence", "uniform"])
@settings(deadline=None, max_examples=30)
@given(vehicles=st.integers(1, 300), cities=st.none() | st.integers(1, 30))
def test_generated_frames_are_enough_for_every_vehicle(
    method: str, vehicles: int, cities: int | None
) -> None:
    overrides = {"vehicles": vehicles, "dataset.generated_cities": cities, "dataset.partition": method}
    scenario = load_scenario(None, overrides)
    for share in allocate(scenario, _Names(scenario)).values():
        assert share.train and share.val and share.test


def test_a_thousand_vehicles_have_frames_and_few_foreign_ones() -> None:
    scenario = Scenario(vehicles=1000)
    assert rendered_frames_per_city(scenario) == 375
    shares = allocate(scenario, _Names(scenario))
    assert len(shares) == 1000
    assert sum(len(share.ood) for share in shares.values()) == 1000
    for share in list(shares.values())[::97]:
        assert not set(share.ood) & set(share.train + share.val + share.test)


@pytest.mark.parametrize("vehicles", [1, 4, 8, 40, 160])
def test_small_fleets_have_the_frames_that_they_always_had(vehicles: int) -> None:
    assert rendered_frames_per_city(Scenario(vehicles=vehicles)) == 60


@pytest.mark.parametrize(("vehicles", "each"), [(2, 12), (8, 40), (25, 40), (26, 38), (100, 10), (1000, 1)])
def test_foreign_frames_are_forty_each_or_a_thousand_in_all(vehicles: int, each: int) -> None:
    scenario = Scenario(vehicles=vehicles)
    assert {len(share.ood) for share in allocate(scenario, _Names(scenario)).values()} == {each}


def test_in_a_fleet_of_more_than_a_thousand_some_have_a_foreign_frame() -> None:
    scenario = Scenario(vehicles=1500)
    counts = [len(share.ood) for share in allocate(scenario, _Names(scenario)).values()]
    assert (sum(counts), set(counts)) == (1000, {0, 1})
    assert 0 < sum(counts[:150]) < 150  # spread over the fleet


def test_a_given_number_of_foreign_frames_is_kept_to() -> None:
    scenario = load_scenario(None, {"vehicles": 60, "evaluation.ood_frames": 50})
    assert {len(share.ood) for share in allocate(scenario, _Names(scenario)).values()} == {50}


def test_much_rendering_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet.frames.rendering._ANNOUNCED_FROM", 10)
    monkeypatch.setattr("fleet.frames.rendering._ESTIMATE_AFTER_S", 0)
    scenario = load_scenario(
        None, {"vehicles": 1, "image_size": "32x32", "dataset.frames_per_sequence": 12, "cores": 1}
    )
    said = io.StringIO()
    open_data(scenario, tmp_path, Console(file=said, width=300))
    first, second = said.getvalue().splitlines()
    assert first == (
        f"rendering driving frames into {tmp_path}/data: 1 cities, 12 frames of each, 12 of 12 to go"
    )
    assert re.fullmatch(r"1 of 12 frames rendered, about \d+:\d\d left", second)
    said.truncate(0)
    open_data(scenario, tmp_path, Console(file=said, width=300))
    assert said.getvalue() == ""


# Tables ----------------------------------------------------------------------------------------------------


def test_a_large_table_names_those_that_have_moved_most_and_least_and_counts_the_others() -> None:
    gains = {f"car-{place:03d}": (place * 37 % 100) / 100 for place in range(100)}
    vehicles: dict[str, dict[str, float | None]] = {
        name: {"initial_local_miou": 0.1, "local_miou": 0.1 + gain} for name, gain in gains.items()
    }
    untested = {f"car-{place}": {"initial_local_miou": None, "local_miou": None} for place in range(100, 200)}
    shown, others = movers({**vehicles, **untested})
    assert [gains[name] for name in shown] == [x / 100 for x in (*range(99, 89, -1), *range(9, -1, -1))]
    assert others == "… and 180 more"
    few = dict(list(vehicles.items())[:40])
    assert movers(few) == (list(few), "")
    assert movers({**dict(list(vehicles.items())[:3]), **untested}) == (list(vehicles)[:3], "… and 100 more")


# Lines -----------------------------------------------------------------------------------------------------


def _lines(vehicles: int, rounds: int = 2, **changes: Any) -> list[str]:
    """What is printed of a run in which every vehicle is validated and tested."""
    scenario = load_scenario(None, {"vehicles": vehicles, "rounds": rounds})
    said = io.StringIO()
    with Progress(scenario, Console(file=said, width=200)) as progress:
        for number in range(1, rounds + 1):
            progress.event("turn", {"round": number, "kind": "learn", "vehicle": scenario.vehicle_ids[0]})
            for place, vehicle in enumerate(scenario.vehicle_ids[: changes.get("validated", vehicles)]):
                miou = place / vehicles
                progress.event("reject", {"vehicle": vehicle, "reason": "odd"})
                progress.event(
                    "validation", {"round": number, "vehicle": vehicle, "miou": miou, "best": miou}
                )
        for vehicle in scenario.vehicle_ids[: changes.get("tested", vehicles)]:
            for split in ("test", "ood"):
                values = {"kind": "final", "split": split, "vehicle": vehicle, "miou": 0.5, "frames": 3}
                progress.event("evaluation", values)
    return said.getvalue().splitlines()


def test_each_vehicle_of_a_small_fleet_has_its_lines() -> None:
    lines = _lines(4)
    assert [
        line for line in lines if line.startswith("round 1/2  car-03  loss –  val mIoU 0.500 (best 0.500)")
    ]
    assert len([line for line in lines if line.startswith("final ood  car-02  mIoU 0.500 on 3 frames")]) == 1
    assert len(lines) == 2 * 2 * 4 + 2 * 4


@pytest.mark.parametrize("vehicles", [17, 100, 1000, 1003])
def test_a_large_fleet_has_a_line_a_round_which_tells_of_all(vehicles: int) -> None:
    lines = _lines(vehicles)
    for beginning in ("round 1/2  val", "round 2/2  val", "final  test", "final  ood"):
        [about] = [line for line in lines if line.startswith(beginning)]
        assert f"  {vehicles} of {vehicles} vehicles  mIoU " in about
    assert lines.count("rejected a message of car-0001: odd") <= 2
    assert len(lines) <= 4 + 3 * 11


def test_vehicles_that_have_left_are_not_waited_for() -> None:
    lines = _lines(1000, tested=977)
    assert "final  test  977 of 1000 vehicles  mIoU 0.500 on average, 0.500 to 0.500" in lines


def test_a_round_in_which_not_all_took_part_is_told_before_the_next() -> None:
    lines = [line for line in _lines(1000, validated=50) if "  val  " in line]
    ends = "  val  50 of 1000 vehicles  mIoU 0.025 on average, 0.000 to 0.049  0 B up  0 B down"
    assert lines == [f"round {number}/2{ends}" for number in (1, 2)]


@pytest.mark.parametrize(
    ("vehicles", "heartbeat_s"), [(100, 10.0), (101, 10.0), (1000, 40.0), (10_000, 120.0)]
)
def test_signs_of_life_of_a_large_fleet_come_more_seldom_unless_said_otherwise(
    vehicles: int, heartbeat_s: float
) -> None:
    assert load_scenario(None, {"vehicles": vehicles}).patience.heartbeat_s == heartbeat_s
    assert (
        load_scenario(None, {"vehicles": vehicles, "patience.heartbeat_s": 7.0}).patience.heartbeat_s == 7.0
    )


def test_tested_vehicles_are_dealt_by_themselves_and_each_stays_where_its_state_is(tmp_path: Path) -> None:
    scenario = load_scenario(None, {"vehicles": 1000, "cores": 2})
    vehicles = [VehicleConfig(id=name, bundle="", state="") for name in scenario.vehicle_ids]
    dealt = [[vehicle.id for vehicle in members] for members in _hosts_of(vehicles, scenario, None)]
    assert [len(members) for members in dealt] == [500, 500]
    assert [len({*members} & {*scenario.evaluated_vehicles}) for members in dealt] == [25, 25]
    for number, members in enumerate(reversed(dealt), start=1):
        some = tuple(vehicle for vehicle in vehicles if vehicle.id in members)
        host = HostConfig(fleet="demo", data_root="", vehicles=some)
        write_json_atomic(tmp_path / f"host-{number:02d}.json", msgspec.to_builtins(host))
        kept = [[vehicle.id for vehicle in some] for some in _hosts_of(vehicles, scenario, tmp_path)]
        # Settings of one host alone are of a launch that did not get far.
        assert kept == (dealt if number == 1 else dealt[::-1])
