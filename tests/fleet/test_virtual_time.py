"""Virtual time: the same bits as without it, the same moments each time, links that keep their word."""

from __future__ import annotations

import json
import queue
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fleet_fixtures import CARS, FLEET, TinyFleet
from fleet_fixtures import World as Frames
from hypothesis import given
from hypothesis import strategies as st

from cloud_server.config import PatienceConfig
from fleet.run.checks import check_runnable
from fleet.run.in_process import run_in_process
from fleet.scenario import load_scenario
from fleet.simulation.availability import Timeline, timelines
from fleet.simulation.budget import MONTH_S, Budget
from fleet.simulation.devices import DEVICES
from fleet.simulation.line import Line, Shared
from fleet.simulation.patience import remark_on_absences
from fleet.simulation.resuming import committed_at_s
from fleet.simulation.settings import SimulationPart
from fleet.simulation.spent import Spent
from fleet.simulation.virtual_clock import Event, EventQueue, VirtualClock
from fleet.simulation.world import World
from protocol.errors import BlackfleetError

AWAY = {"time": "virtual", "link": "3g", "profile": "car-cpu", "availability": "markov:3/2"}


def run_virtually(fleet: TinyFleet, **part: Any) -> TinyFleet:
    """Run a fleet in a simulated world."""
    world = World(SimulationPart(**part), fleet=FLEET, vehicles=CARS, seed=0)
    run_in_process(fleet.config, [fleet.host()], fleet.run_folder, world=world)
    return fleet


def moments(fleet: TinyFleet) -> list[tuple[str, float]]:
    """When what happened."""
    lines = (json.loads(line) for line in (fleet.run_folder / "log.jsonl").read_text().splitlines())
    return [(line["event"], line["virtual_s"]) for line in lines]


def test_virtual_run_has_the_bits_of_a_real_one_and_the_same_moments_each_time(
    tiny_world: Frames, undisturbed: TinyFleet, tmp_path: Path
) -> None:
    first, second = (run_virtually(TinyFleet(tiny_world, tmp_path / name), **AWAY) for name in "ab")
    assert first.scores() == second.scores() == undisturbed.scores()
    assert first.fingerprint() == second.fingerprint() == undisturbed.fingerprint()
    assert moments(first) == moments(second)
    result, again = first.result(), second.result()
    for name in ("virtual_s", "bytes_by_link", "cloud_busy_s", "vehicles"):
        assert result[name] == again[name]
    sent = result["bytes_by_link"]["3g"]
    assert sent["up"] >= result["uplink_bytes"]
    # No line carries more than its bandwidth.
    assert result["virtual_s"] >= 8 * sent["up"] / len(CARS) / 0.768e6
    assert all(0 < car["busy_s"] < result["virtual_s"] for car in result["vehicles"].values())
    assert any(car["away_s"] > 0 for car in result["vehicles"].values())
    # A run that was killed after its last commit counts on from there when it goes on.
    (first.run_folder / "result.json").unlink()
    at_s = committed_at_s(first.run_folder)
    world = World(SimulationPart(**AWAY), fleet=FLEET, vehicles=CARS, seed=0, start_s=at_s)
    run_in_process(first.config, [first.host()], first.run_folder, world=world, resume=True)
    resumed = first.result()
    assert first.fingerprint() == second.fingerprint()
    assert 0 <= resumed["virtual_s"] - result["virtual_s"] < 30, "but for coming together again"
    assert resumed["cloud_busy_s"] == result["cloud_busy_s"]
    for car in CARS:
        before, after = result["vehicles"][car], resumed["vehicles"][car]
        assert after["busy_s"] == before["busy_s"] and after["absences"] >= before["absences"]
        assert after["away_s"] == pytest.approx(before["away_s"], abs=30)
    assert resumed["bytes_by_link"]["3g"]["up"] == pytest.approx(sent["up"], rel=0.02)


def test_throttled_run_takes_the_time_of_its_devices_and_has_the_same_bits(
    tiny_world: Frames, undisturbed: TinyFleet, tmp_path: Path
) -> None:
    throttled = run_virtually(TinyFleet(tiny_world, tmp_path), link="5g", profile="car-cpu", time="real")
    assert throttled.scores() == undisturbed.scores()
    assert throttled.fingerprint() == undisturbed.fingerprint()
    result = throttled.result()
    assert result["virtual_s"] >= result["cloud_busy_s"] + max(
        car["busy_s"] for car in result["vehicles"].values()
    )


def test_vehicle_without_data_is_out_until_the_month_ends_and_the_run_goes_on(
    tiny_world: Frames, tmp_path: Path
) -> None:
    patience = PatienceConfig(join_s=30, retry_s=0.2, give_up_s=30, heartbeat_s=5, on_failure="readmit")
    fleet = TinyFleet(tiny_world, tmp_path, algorithm="frozen", rounds=1, patience=patience)
    told: list[tuple[str, Any]] = []
    part = SimulationPart(time="virtual", link="3g", budgets={CARS[1]: 0.005})
    world = World(
        part, fleet=FLEET, vehicles=CARS, seed=0, tell=lambda name, values: told.append((name, values))
    )
    run_in_process(fleet.config, [fleet.host()], fleet.run_folder, world=world)
    [(name, values)] = told
    assert (name, values["vehicle"], values["until_s"]) == ("out_of_data", CARS[1], MONTH_S)
    result = fleet.result()
    first, second = (result["vehicles"][car] for car in CARS)
    assert (second["out_of_data"], second["budget_mb"]) == (1, 0.005) and "out_of_data" not in first
    assert second["absences"] == 1 and second["away_s"] > 30
    assert list(result["failed"]) == [CARS[1]]


def test_vehicles_of_a_cell_share_its_bandwidth_and_come_back_with_the_next_month() -> None:
    cell = Shared(1.0)
    lines = [
        Line(mbit_s=10, latency_ms=0, jitter_ms=0, loss=0, random=np.random.default_rng(0), shared=cell)
        for _ in range(2)
    ]
    assert [line.carry(0.0, 125_000) for line in lines] == [1.0, 2.0]
    assert lines[0].carry(5.0, 125_000) == 6.0, "an idle cell has saved nothing up"
    budget = Budget(0.001)
    assert [budget.spend(at, 600) for at in (0.0, 1.0, 2.0)] == [False, True, False]
    assert budget.out_until == MONTH_S and not budget.spend(MONTH_S, 600) and budget.spend(MONTH_S, 600)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans())))
def test_event_queue_gives_what_was_not_cancelled_by_time_then_order(plan: list[tuple[int, bool]]) -> None:
    events = [Event(float(time_s), lambda: None) for time_s, _ in plan]
    waiting = EventQueue()
    for event, (_, cancelled) in zip(events, plan, strict=True):
        waiting.add(event)
        if cancelled:
            event.cancel()
    given_back = list(iter(waiting.pop, None))
    kept = [event for event in events if not event.cancelled]
    assert given_back == sorted(kept, key=lambda event: event.time_s)


@given(
    st.lists(st.tuples(st.floats(0, 10), st.integers(1, 200_000)), min_size=1),
    st.floats(0.1, 1000),
    st.floats(0, 0.5),
)
def test_line_keeps_order_and_bandwidth(sent: list[tuple[float, int]], mbit_s: float, loss: float) -> None:
    line = Line(mbit_s=mbit_s, latency_ms=20, jitter_ms=50, loss=loss, random=np.random.default_rng(0))
    now, arrivals = 0.0, []
    for pause_s, size in sent:
        now += pause_s
        arrivals.append(line.carry(now, size))
        assert arrivals[-1] >= now + 0.02 + 8e-6 * size / mbit_s - 1e-9
    assert arrivals == sorted(arrivals)
    assert line.bytes >= sum(size for _, size in sent)
    assert arrivals[-1] - sent[0][0] >= 8e-6 * line.bytes / mbit_s


def test_clock_wakes_by_time_then_by_the_order_of_planning() -> None:
    clock = VirtualClock(("a", "b"), Spent({name: DEVICES["core"] for name in "ab"}))
    seen: list[tuple[str, float]] = []
    inbox: queue.Queue[str] = queue.Queue()

    def run(name: str) -> None:
        with clock.participant(name):
            for _ in range(2):
                clock.sleep(1.0)
                seen.append((name, clock.now()))
            if name == "a":
                clock.at(clock.now() + 5, lambda: clock.put(inbox, "word"))
            elif clock.take(inbox, 100) == "word":
                seen.append((name, clock.now()))

    threads = [threading.Thread(target=run, args=(name,)) for name in "ba"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert seen == [("a", 1), ("b", 1), ("a", 2), ("b", 2), ("b", 7)]


@given(st.integers(0, 2**32), st.floats(0, 1e4))
def test_timeline_comes_back_when_it_says(seed: int, now: float) -> None:
    timeline: Timeline = timelines("markov:30/60", ("car-01",), seed)["car-01"]
    there = timeline.next_there(now)
    assert there >= now
    assert timeline.is_there(there)
    assert timeline.is_there(now) == (there == now)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"profile": "orin-mini:1"}, "unknown simulation.profile 'orin-mini', expected one of: core"),
        ({"profile": "orin-nano:0"}, "weights above 0, got 'orin-nano:0'"),
        ({"link": "6g"}, "unknown simulation.link '6g', expected one of: ethernet"),
        ({"links": {"car-09": "3g"}}, "simulation.links names vehicle 'car-09'"),
        ({"cloud": "moon", "time": "virtual"}, "unknown simulation.cloud 'moon'"),
        ({"budget_mb": 0.0}, "simulation.budget_mb must be above 0, got 0; leave it out"),
        ({"budgets": {"car-01": -1.0}}, "simulation.budgets of car-01 must be above 0, got -1"),
        ({"budgets": {"car-09": 1.0}}, "simulation.budgets names vehicle 'car-09'"),
        ({"cell": "north"}, "unknown simulation.cell 'north', expected one of your own, in the file"),
        ({"cells": {"car-09": "a"}, "profiles": "cells.yaml"}, "simulation.cells names vehicle 'car-09'"),
        ({"cell": "b", "profiles": "narrow.yaml"}, "a cell's up_mbit_s must be above 0, got 0"),
        ({"time": "sidereal"}, "simulation.time must be one of real, virtual"),
        ({"profiles": "links.yaml", "link": "mine"}, "up_mbit_s must be above 0, got 0"),
    ],
)
def test_mistake_in_a_simulation_is_one_line(
    settings: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cells.yaml").write_text("cells: {a: {up_mbit_s: 5, down_mbit_s: 5}}\n")
    (tmp_path / "narrow.yaml").write_text("cells: {b: {up_mbit_s: 0, down_mbit_s: 5}}\n")
    (tmp_path / "links.yaml").write_text("links: {mine: {up_mbit_s: 0, down_mbit_s: 5}}\n")
    with pytest.raises(BlackfleetError, match=r"^[^\n]*$") as caught:
        load_scenario(None, {"simulation": settings})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"broker": "mqtt://127.0.0.1:1"}, "are simulated on the bus in memory alone, got broker mqtt:"),
        ({"algorithm": "centralized"}, "centralized has no fleet"),
        ({"simulation.availability": "nowhere.csv"}, "or a CSV file, got 'nowhere.csv'"),
        ({"patience.on_failure": "wait"}, "nothing can come back"),
    ],
)
def test_what_virtual_time_needs_is_said_before_anything_starts(settings: dict[str, Any], said: str) -> None:
    scenario = load_scenario(None, {"simulation.time": "virtual", **settings})
    with pytest.raises(BlackfleetError, match=r"^[^\n]*$") as caught:
        check_runnable(scenario)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("car-01,0,10,yes\ncar-01,12,20,no", "line 3: a gap in the trace of car-01: 12 s follows 10 s"),
        ("car-01,0,10,yes\ncar-01,8,20,no", "line 3: an overlap in the trace of car-01"),
        ("car-01,5,10,yes", "line 2: a gap"),
        ("car-03,0,10,yes", "line 2: vehicle 'car-03' is not in this fleet"),
        ("car-01,0,10,maybe", "line 2: expected VEHICLE,FROM,TO,yes or no"),
        ("car-01,9,3,yes", "line 2: FROM and TO must be seconds"),
    ],
)
def test_mistake_in_a_trace_is_one_line(rows: str, said: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(f"vehicle,from_s,to_s,there\n{rows}\n")
    with pytest.raises(BlackfleetError, match=r"^[^\n]*$") as caught:
        timelines(str(trace), ("car-01", "car-02"), 0)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("availability", "patience"),
    [
        ("always", (120, 600, 21600)),
        ("markov:300/60", (120 + 1800, 600 + 1800, 21600 * 1.2)),
        ("windows:50-100,400-500,600-", (120 + 50, 600 + 300, 21600 + 450)),
        ("trace.csv", (120 + 4, 600 + 30, 21600 + 34)),
    ],
)
def test_cloud_waits_as_long_as_vehicles_are_away_unless_told_otherwise(
    availability: str, patience: tuple[float, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trace.csv").write_text(
        "vehicle,from_s,to_s,there\ncar-01,0,4,no\ncar-01,4,8,yes\ncar-01,8,38,no\ncar-01,38,50,yes\n"
        "car-02,0,9,yes\ncar-02,9,,no\n"
    )
    settings = {"simulation": {"time": "virtual", "availability": availability}}
    scenario = load_scenario(None, settings)
    part = scenario.patience
    assert (part.join_s, part.give_up_s, part.turn_s) == pytest.approx(patience)
    remark = remark_on_absences(scenario.simulation, part)
    assert (remark is None) == (availability == "always")
    own = load_scenario(None, {**settings, "patience.give_up_s": 7.0}).patience
    assert own == msgspec.structs.replace(part, give_up_s=7.0)
    said = remark_on_absences(scenario.simulation, own)
    assert said is None if availability == "always" else said and "patience: give_up_s 7 s" in said


@pytest.mark.parametrize(
    "bound",
    [
        {"budget_mb": 5.0},
        {"budgets": {"car-01": 5.0}},
        {"link": "modem", "profiles": "own.yaml"},
        {"links": {"car-01": "modem"}, "profiles": "own.yaml"},
    ],
)
def test_nobody_waits_for_the_end_of_a_month_unless_told_to(
    bound: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("links: {modem: {up_mbit_s: 4, down_mbit_s: 4, budget_mb: 5}}\n")
    settings = {"simulation": {"time": "virtual", **bound}}
    assert load_scenario(None, settings).patience.on_failure == "readmit"
    own = {**settings, "patience": {"on_failure": "stop"}}
    assert load_scenario(None, own).patience.on_failure == "stop"


@pytest.mark.parametrize(
    "text", ["windows:5", "windows:9-3", "windows:0-9,5-12", "markov:3", "markov:0/3", "never"]
)
def test_unknown_availability_is_one_line(text: str) -> None:
    with pytest.raises(BlackfleetError, match=r"^simulation.availability[^\n]*$"):
        timelines(text, ("car-01",), 0)


def test_windows_and_trace_say_when_a_vehicle_is_there(tmp_path: Path) -> None:
    windows = timelines("windows:0-10,20-", ("car-01",), 0)["car-01"]
    assert [windows.is_there(now) for now in (0, 9.9, 10, 19, 20, 1e9)] == [
        True,
        True,
        False,
        False,
        True,
        True,
    ]
    (tmp_path / "trace.csv").write_text(
        "vehicle,from_s,to_s,there\ncar-01,0,4,no\ncar-01,4,8,yes\ncar-01,8,,no\n"
    )
    trace = timelines(str(tmp_path / "trace.csv"), ("car-01",), 0)["car-01"]
    assert [trace.is_there(now) for now in (0, 5, 8, 99)] == [False, True, False, False]
