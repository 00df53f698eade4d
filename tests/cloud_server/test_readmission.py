"""Vehicles that come back to a run that went on without them, or come late: from the next round on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fleet_fixtures import TinyFleet, World
from supervision import Supervisor

from cloud_server.config import PatienceConfig
from edge_client.turn import TurnTools
from protocol.plans.local_loss import LocalLossPlan

WELL, OTHER = "car-1", "car-2"
SHORT: dict[str, Any] = {"local_loss": LocalLossPlan(warm_up_epochs=1, epochs=1)}


def _patience(**changes: float) -> PatienceConfig:
    values = {"join_s": 30, "retry_s": 0.2, "give_up_s": 30, "heartbeat_s": 0.5, **changes}
    return PatienceConfig(on_failure="readmit", **values)


def _check_uploads(fleet: TinyFleet) -> None:
    """What was acknowledged was trained, and none of it twice."""
    for car in fleet.result()["vehicles"].values():
        assert car["uploads"]["trained"] == car["uploads"]["acknowledged"] > 0
        assert car["uploads"]["repeated"] == 0


def _let_the_well_one_wait(monkeypatch: pytest.MonkeyPatch, until: Callable[[], bool]) -> None:
    """Before it uploads anything, so that the other one comes in the same round or the one after."""
    sound = TurnTools.upload

    def upload(tools: TurnTools, split: str, theta: Any) -> None:
        if tools.turn.vehicle == WELL:
            deadline = time.monotonic() + 30
            while not until() and time.monotonic() < deadline:
                time.sleep(0.02)
        sound(tools, split, theta)

    monkeypatch.setattr(TurnTools, "upload", upload)


def test_vehicle_that_was_given_up_takes_part_again_from_the_round_after_it_is_back(
    tiny_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cloud is killed afterwards, too: what it goes on with is what it had."""
    patience = _patience(give_up_s=1.0)
    fleet = TinyFleet(tiny_world, tmp_path, algorithm="blackfleet", rounds=3, patience=patience, **SHORT)
    supervisor = Supervisor(fleet)
    given_up, said_hello = threading.Event(), threading.Event()
    run_once = supervisor.run_vehicle

    def run_late(car: str) -> None:
        if car != OTHER or OTHER not in supervisor.kills or given_up.wait(30):
            run_once(car)

    def disturb(supervisor: Supervisor, message_tag: str, car: str) -> None:
        kills = supervisor.kills
        if OTHER not in kills and (car, message_tag) == (OTHER, "upload") and fleet.events("committed"):
            supervisor.kill_vehicle(OTHER)
        elif OTHER in kills and (car, message_tag) == (OTHER, "hello"):
            said_hello.set()
        elif "cloud" not in kills and (car, message_tag) == (OTHER, "upload") and said_hello.is_set():
            supervisor.kill_cloud()

    def may_go_on() -> bool:
        if OTHER in supervisor.kills and not given_up.is_set() and fleet.events("failed"):
            given_up.set()
        return not given_up.is_set() or said_hello.is_set()

    supervisor.run_vehicle = run_late  # type: ignore[method-assign]
    supervisor.sabotage(disturb)
    _let_the_well_one_wait(monkeypatch, may_go_on)
    supervisor.run()
    assert supervisor.kills == [OTHER, "cloud"]
    result = fleet.result()
    assert result["failed"] == {}
    [failed], [readmitted] = fleet.events("failed"), fleet.events("readmitted")
    assert failed["vehicle"] == readmitted["vehicle"] == OTHER
    assert failed["round"] == 1 and readmitted["round"] in (2, 3)
    assert result["vehicles"][OTHER]["local_miou"] is not None
    _check_uploads(fleet)


def test_vehicle_that_comes_late_joins_the_next_round(
    tiny_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where each vehicle has a stage of its own, so that stages are numbered anew."""
    fleet = TinyFleet(tiny_world, tmp_path, algorithm="blackfed-v2", rounds=2, patience=_patience(join_s=1.0))
    supervisor = Supervisor(fleet)
    begun, said_hello = threading.Event(), threading.Event()
    supervisor.before_vehicle(OTHER, lambda: begun.wait(30) and None)

    def watch(supervisor: Supervisor, message_tag: str, car: str) -> None:
        if (car, message_tag) == (OTHER, "hello"):
            said_hello.set()
        elif (car, message_tag) == (WELL, "turn"):
            begun.set()

    supervisor.sabotage(watch)
    _let_the_well_one_wait(monkeypatch, said_hello.is_set)
    supervisor.run()
    result = fleet.result()
    assert result["failed"] == {} and list(result["vehicles"]) == [WELL, OTHER]
    assert result["vehicles"][OTHER]["local_miou"] is not None
    assert result["vehicles"][OTHER]["initial_local_miou"] is None
    _check_uploads(fleet)
