"""A run's events as numbers: counted, bounded, forgotten when a vehicle has gone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_server.metrics import EXPIRY_S, MOST_VEHICLES, RunMetrics


class _Run:
    """Metrics with a clock of their own."""

    def __init__(self, vehicles: int = 2) -> None:
        self.now = 1000.0
        self.metrics = RunMetrics({"run": "demo"}, clock=lambda: self.now)
        self.names = [f"car-{number:02d}" for number in range(1, vehicles + 1)]
        for name in self.names:
            self.tell("joined", vehicle=name, encoder="e", frames={})
        self.tell("run", algorithm="a", stages=8, first=0, rounds=3, vehicles=self.names)

    def tell(self, name: str, **values: Any) -> None:
        self.metrics.event(name, values)

    def turn(self, vehicle: str, up: int) -> None:
        self.tell("turn", stage=1, round=1, kind="train", vehicle=vehicle)
        self.tell(
            "turn_done",
            vehicle=vehicle,
            kind="train",
            loss=0.5,
            vehicle_s=2.0,
            queries=3,
            uplink_bytes=up,
            downlink_bytes=10,
        )

    def series(self, name: str) -> dict[tuple[str, ...], Any]:
        [family] = [f for f in self.metrics.families() if f.name == f"blackfleet_{name}"]
        return dict(family.samples)

    @property
    def shown(self) -> list[str]:
        return [vehicle for (vehicle,) in self.series("vehicle_online")]


def test_health_is_what_the_vehicle_said_last_in_the_units_of_prometheus() -> None:
    run = _Run()
    for temperature_c in (50, None):
        said = {
            "temperature_c": temperature_c,
            "is_throttled": True,
            "free_disk_mb": 7,
            "is_paused": False,
            "served_ms": 31,
        }
        run.tell("health", vehicle="car-01", power_mode="15W", free_memory_mb=None, **said)
        heat = {} if temperature_c is None else {("car-01",): 50.0}
        assert run.series("vehicle_temperature_celsius") == heat
    assert run.series("vehicle_free_disk_bytes") == {("car-01",): 7e6}
    assert run.series("vehicle_throttled") == {("car-01",): 1.0}
    assert run.series("vehicle_served_age_seconds") == {("car-01",): 0.031}
    assert run.series("vehicle_paused") == {("car-01",): 0.0}
    assert run.series("vehicle_free_memory_bytes") == {}


def test_bytes_turns_and_scores_are_those_of_the_events() -> None:
    run = _Run()
    run.turn("car-01", 100)
    run.turn("car-02", 50)
    run.turn("car-01", 170)
    run.tell("validation", vehicle="car-01", round=1, miou=0.3, best=0.4)
    for vehicle, miou in (("car-01", 0.2), ("car-02", 0.4), ("car-02", None)):
        run.tell("evaluation", vehicle=vehicle, kind="final", split="test", miou=miou, frames=3)
    run.tell("curve", stage=1, round=1, loss=0.7, val_miou=0.35, steps=12)
    run.tell("committed", stage=1, round=1, kind="train")
    assert run.series("uplink_bytes_total") == {(): 220}
    assert run.series("vehicle_uplink_bytes_total") == {("car-01",): 170, ("car-02",): 50}
    assert run.series("turns_total")["train",] == 3
    assert run.series("turn_duration_seconds")[()].total == 6.0
    assert run.series("vehicle_validation_miou_ratio") == {("car-01",): 0.3}
    assert run.series("vehicle_best_validation_miou_ratio") == {("car-01",): 0.4}
    assert run.series("validation_miou_ratio") == {(): 0.35}
    assert run.series("test_miou_ratio") == {("final", "test"): pytest.approx(0.3)}
    assert run.series("stages_committed") == {(): 2}
    assert run.series("run_info") == {("demo",): 1}


def test_vehicles_are_counted_by_what_they_do() -> None:
    run = _Run(4)
    run.tell("turn", stage=1, round=1, kind="train", vehicle="car-01")
    run.tell("left", vehicle="car-02")
    run.tell("failed", vehicle="car-03", stage=1, round=1, reason="disk")
    run.tell("run", algorithm="a", stages=8, first=0, rounds=3, vehicles=[*run.names, "car-05"])
    states = {state: count for (state,), count in run.series("vehicles").items()}
    assert states == {"missing": 1, "waiting": 1, "working": 1, "away": 1, "failed": 1}


@pytest.mark.parametrize("returns", ["joined", "back"])
def test_vehicle_stays_away_whatever_the_cloud_does_for_it(returns: str) -> None:
    run = _Run(1)
    run.tell("left", vehicle="car-01")
    run.tell("learning", vehicle="car-01", stage=1, done=3, total=3, loss=0.5)
    run.turn("car-01", 100)
    assert run.series("vehicles")["away",] == 1
    run.tell(returns, vehicle="car-01", encoder="e", frames={})
    run.turn("car-01", 100)
    assert run.series("vehicles")["waiting",] == 1


@pytest.mark.parametrize("event", ["left", "failed"])
def test_series_of_a_vehicle_that_has_gone_expire_and_sums_stay(event: str) -> None:
    run = _Run()
    run.turn("car-01", 100)
    run.now += 10
    run.tell(event, vehicle="car-01", stage=1, round=1, reason="")
    run.now += EXPIRY_S
    assert run.shown == ["car-01", "car-02"]
    run.now += 1
    assert run.shown == ["car-02"]
    assert run.series("uplink_bytes_total") == {(): 100}
    if event == "left":
        run.tell("joined", vehicle="car-01", encoder="e", frames={})
        assert run.shown == ["car-01", "car-02"]


def test_a_fleet_that_is_stopped_has_no_series_after_a_while() -> None:
    run = _Run()
    run.tell("stopped")
    run.now += EXPIRY_S + 1
    assert run.shown == []


def test_labels_are_bounded_in_a_large_fleet() -> None:
    run = _Run(MOST_VEHICLES + 7)
    assert len(run.shown) == MOST_VEHICLES
    assert run.series("vehicles_without_series") == {(): 7}


@given(name=st.text(), kind=st.sampled_from(["reject", "undelivered", "left", "traffic", "turn"]))
def test_what_strangers_say_is_no_label(name: str, kind: str) -> None:
    run = _Run()
    if name not in run.names:
        values = {"queries": 0, "uplink_bytes": 0, "downlink_bytes": 0, "kind": "train", "round": 1}
        run.tell(kind, vehicle=name, reason=name, count=3, **values)
    for family in run.metrics.families():
        for labels, _ in family.samples:
            assert "vehicle" not in family.labels or labels[0] in run.names


def test_rejects_are_the_vehicles_own_and_strangers_together() -> None:
    run = _Run()
    run.tell("reject", vehicle="car-01", reason="odd", count=4)
    run.tell("reject", vehicle="who", reason="odd", count=9)
    assert run.series("vehicle_rejects_total")["car-01",] == 4
    assert run.series("stranger_rejects_total") == {(): 9}
    assert run.series("rejects_total") == {(): 4}
