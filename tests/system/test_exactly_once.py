"""Whatever the network and the operating system do, a seeded run ends with the very same weights."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fleet_fixtures import CARS, TinyFleet, tag, unreliable_bus
from supervision import Saboteur, Supervisor

from protocol.session.memory import MemoryBus


@pytest.mark.parametrize(
    ("duplicate", "delay", "drop"),
    [(0.5, 0.0, 0.0), (0.0, 0.3, 0.0), (0.0, 0.0, 0.1)],
    ids=["duplicated", "reordered", "lost"],
)
def test_unreliable_delivery_changes_nothing(
    duplicate: float, delay: float, drop: float, undisturbed: TinyFleet, tmp_path: Path
) -> None:
    fleet = TinyFleet(undisturbed.world, tmp_path)
    Supervisor(fleet, unreliable_bus(1, duplicate=duplicate, delay=delay, drop=drop)).run()
    assert fleet.fingerprint() == undisturbed.fingerprint()
    assert _scores(fleet) == _scores(undisturbed)


def _scores(fleet: TinyFleet) -> dict[str, object]:
    result = fleet.result()
    names = ("mean_local_miou", "mean_ood_miou", "initial_local_miou", "classes")
    return {name: result[name] for name in names} | {
        car: result["vehicles"][car]["queries"] for car in result["vehicles"]
    }


_FIRST_TURN = [("car-1", "welcome", 1), ("car-2", "offer", 1), ("car-1", "want", 1)]
_ZEROTH_ORDER = [("car-1", "query", 1), ("car-1", "feedback", 4), ("car-2", "query", 3)]
_UPLOADS = [("car-1", "upload", 3), ("car-2", "upload", 5), ("car-1", "ack", 5)]
_ENDS = [("car-1", "done", 2), ("car-2", "done", 3), ("car-2", "turn", 4), ("car-1", "turn", 4)]


@pytest.mark.parametrize("victim", ["car", "cloud"])
@pytest.mark.parametrize(
    "points",
    [_FIRST_TURN + _ZEROTH_ORDER, _UPLOADS + _ENDS],
    ids=["early in turns", "late in turns"],
)
def test_killed_process_changes_nothing(
    victim: str, points: list[tuple[str, str, int]], undisturbed: TinyFleet, tmp_path: Path
) -> None:
    fleet = TinyFleet(undisturbed.world, tmp_path)
    supervisor = Supervisor(fleet)
    supervisor.run_with_kills(set(points), victim)
    assert len(supervisor.kills) == len(points)
    assert fleet.fingerprint() == undisturbed.fingerprint()
    assert _scores(fleet) == _scores(undisturbed)


@pytest.mark.parametrize("seed", [0, 1])
def test_kills_anywhere_on_an_unreliable_network_change_nothing(
    seed: int, undisturbed: TinyFleet, tmp_path: Path
) -> None:
    draws = random.Random(seed)

    def kill_sometimes(supervisor: Supervisor, message_tag: str, car: str) -> None:
        if len(supervisor.kills) < 10 and draws.random() < 0.05:
            victim = draws.choice(["cloud", *CARS])
            if victim == "cloud":
                supervisor.kill_cloud()
            else:
                supervisor.kill_vehicle(victim)

    saboteur: Saboteur = kill_sometimes
    bus = unreliable_bus(seed, duplicate=0.1, delay=0.1, drop=0.02)
    fleet = TinyFleet(undisturbed.world, tmp_path)
    supervisor = Supervisor(fleet, bus)
    supervisor.sabotage(saboteur)
    supervisor.run()
    assert len(supervisor.kills) == 10
    assert fleet.fingerprint() == undisturbed.fingerprint()
    assert _scores(fleet) == _scores(undisturbed)


def test_late_turn_of_an_earlier_grant_changes_nothing(undisturbed: TinyFleet, tmp_path: Path) -> None:
    """Every grant arrives again after the turn has ended, as a broker may deliver it after a reconnection."""
    bus = MemoryBus()
    fleet = TinyFleet(undisturbed.world, tmp_path)
    ghost = bus.client("ghost")
    ghost.connect(0)
    turns: dict[str, list[tuple[str, bytes]]] = {car: [] for car in CARS}

    def replay(topic: str, payload: bytes, qos: int) -> None:
        car = topic.split("/")[3]
        if tag(payload) == "turn" and len(turns[car]) < 8:
            turns[car].append((topic, payload))
        elif tag(payload) == "done":
            for old_topic, old_payload in turns[car]:
                ghost.publish(old_topic, old_payload)

    bus.record(replay)
    Supervisor(fleet, bus).run()
    assert fleet.fingerprint() == undisturbed.fingerprint()
