"""A second process of a vehicle: refused while the first lives, taken in when it is gone."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fleet_fixtures import CARS, TinyFleet, tag
from supervision import Supervisor
from turn_fixtures import empty_turn

from cloud_server.desk.desk import Desk
from cloud_server.desk.newcomers import Newcomers
from cloud_server.desk.registry import Registry
from cloud_server.desk.turns import ActiveTurn
from cloud_server.events import Events
from cloud_server.storage.label_store import LabelStore
from edge_client.errors import VehicleError
from edge_client.host import Host
from protocol.messages import PROTOCOL_VERSION, Hello, Status
from protocol.session.link import CloudLink, Received
from protocol.session.memory import MemoryBus

FIRST, SECOND, THIRD = (letter * 16 for letter in "abc")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _hello(session: str) -> Hello:
    return Hello(
        vehicle="car-1",
        session=session,
        protocol=PROTOCOL_VERSION,
        encoder="stride8-c4",
        bundle_digest="0123",
        feature_shape=(4, 6, 8),
        image_size=(64, 48),
        label_space="camvid",
        frames={"train": 5, "val": 2, "test": 3},
        frames_digest="00",
    )


@pytest.fixture
def registry() -> Registry:
    """In which the first process is at work."""
    made = Registry(("car-1",), label_space="camvid", feature_shapes=None)
    made.admit(_hello(FIRST))
    return made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def newcomers(registry: Registry, clock: Clock) -> Newcomers:
    return Newcomers(registry, heartbeat_s=10.0, clock=clock)


def _gone(registry: Registry, session: str) -> None:
    registry.note_status(Status(vehicle="car-1", session=session, online=False, beat=0))


def test_process_whose_predecessor_has_left_a_will_comes_in_at_once(
    registry: Registry, newcomers: Newcomers
) -> None:
    _gone(registry, FIRST)
    assert not newcomers.must_wait(_hello(SECOND))


def test_will_that_comes_after_the_hello_lets_the_newcomer_in(
    registry: Registry, newcomers: Newcomers
) -> None:
    assert newcomers.must_wait(_hello(SECOND))
    assert newcomers.admitted() == []
    _gone(registry, SECOND)  # of the newcomer, or of nobody: says nothing of the first
    assert newcomers.admitted() == []
    _gone(registry, FIRST)
    assert newcomers.admitted() == [_hello(SECOND)]
    assert newcomers.admitted() == []


def test_sign_of_life_refuses_the_newcomer_unless_it_may_be_a_leftover(
    newcomers: Newcomers, clock: Clock
) -> None:
    assert newcomers.must_wait(_hello(SECOND))
    clock.now += 0.5
    assert newcomers.refused_by("car-1", FIRST) is None
    clock.now += 1
    assert newcomers.refused_by("car-1", SECOND) is None
    assert newcomers.refused_by("car-1", FIRST) == _hello(SECOND)
    clock.now += 100
    assert newcomers.admitted() == []


def test_silence_lets_the_newcomer_in_but_not_while_the_broker_is_away(
    newcomers: Newcomers, clock: Clock
) -> None:
    assert newcomers.must_wait(_hello(SECOND))
    clock.now += 19
    newcomers.broker_was_away()
    clock.now += 19
    assert newcomers.must_wait(_hello(THIRD))  # the second has crashed, too
    assert newcomers.admitted() == []
    clock.now += 2
    assert newcomers.admitted() == [_hello(THIRD)]


def test_hello_that_the_first_repeats_waits_for_nobody(newcomers: Newcomers) -> None:
    assert newcomers.must_wait(_hello(SECOND))
    assert not newcomers.must_wait(_hello(FIRST))


def test_bytes_of_a_process_count_when_it_is_taken_in(registry: Registry) -> None:
    record = registry.record("car-1")
    for session, packet_bytes in ((FIRST, 1), (SECOND, 20), (SECOND, 300)):
        record.count_up(session, "status", packet_bytes)
    assert record.uplink == {"status": 1}
    registry.admit(_hello(SECOND))
    assert record.uplink == {"status": 321}
    assert record.former == [FIRST]
    for number in range(1000):
        record.count_up(f"{number:016x}", "status", 1)
        record.note(f"{number:016x}", online=True)
    assert (len(record.pending), len(record.sessions)) == (8, 8)


@pytest.fixture
def desk(registry: Registry, tmp_path: Path) -> Desk:
    with LabelStore(tmp_path / "labels", num_classes=11) as labels:
        return Desk(
            CloudLink(MemoryBus().client("cloud"), "test"),
            registry=registry,
            labels=labels,
            events=Events(),
            max_answers_per_frame=8,
            max_answers_per_vehicle=lambda train_frames: 8 * train_frames,
            heartbeat_s=10.0,
            retry_s=1.0,
        )


def _say(desk: Desk, message: Hello | Status) -> None:
    desk.handle(Received(vehicle="car-1", message=message, packet_bytes=1))


def _lives(session: str, **more: Any) -> Status:
    return Status(vehicle="car-1", session=session, online=True, beat=1, **more)


def test_process_that_was_only_silent_is_the_vehicle_again_when_it_speaks(
    registry: Registry, desk: Desk
) -> None:
    record = registry.record("car-1")
    registry.admit(_hello(SECOND))  # nothing was heard of the first for long
    _say(desk, _lives(SECOND))
    assert record.session == SECOND
    _say(desk, _lives(FIRST))
    assert (record.session, record.former, record.displaced) == (FIRST, [SECOND], None)
    for message in (_hello(SECOND), _lives(SECOND), _hello(SECOND)):
        _say(desk, message)
    assert record.session == FIRST
    registry.admit(_hello(SECOND))
    record.note_turn(0)  # it has learnt something that the first does not have
    _say(desk, _lives(FIRST))
    assert record.session == SECOND


def test_vehicle_that_says_that_it_takes_nothing_fails_alone(registry: Registry, desk: Desk) -> None:
    desk.active["car-1"] = active = ActiveTurn(turn=empty_turn(), granted_at=0.0)
    _say(desk, _hello(FIRST))
    for session, is_heeded in ((SECOND, False), (FIRST, True)):
        desk._link._note_limit(_lives(session, limit_bytes=1))
        desk.send("car-1", active.turn)
        assert bool(active.failed) == is_heeded
    assert desk.failure is None and "takes; it belongs to another run" in str(active.failed)


def test_copy_of_a_vehicle_is_refused_and_the_run_goes_on_with_the_same_bits(
    undisturbed: TinyFleet, tmp_path: Path
) -> None:
    bus = MemoryBus()
    fleet = TinyFleet(undisturbed.world, tmp_path)
    welcome = threading.Event()
    bus.record(lambda topic, payload, qos: welcome.set() if tag(payload) == "welcome" else None)
    refusals: list[str] = []

    def start_a_copy() -> None:
        assert welcome.wait(30)
        host = fleet.host(CARS[0])
        [vehicle] = host.vehicles
        vehicle = msgspec.structs.replace(vehicle, state=str(tmp_path / "copied state"))
        copy = Host(
            msgspec.structs.replace(host, vehicles=(vehicle,)),
            lambda client_id, will, on_connect: bus.client(client_id, will=will, on_connect=on_connect),
            threading.Event(),
        )
        with pytest.raises(VehicleError) as refusal:
            copy.run()
        refusals.append(str(refusal.value))

    supervisor = Supervisor(fleet, bus)
    supervisor.before_vehicle(CARS[1], start_a_copy)
    supervisor.run()
    assert refusals == [
        f"the cloud refuses vehicle {CARS[0]!r}: another process of this vehicle is at work; stop it, or "
        f"give this one an id of its own"
    ]
    assert fleet.fingerprint() == undisturbed.fingerprint()
    assert fleet.events("restarted") == []
