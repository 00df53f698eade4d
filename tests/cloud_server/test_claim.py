"""A second cloud of a fleet: refused while the first lives, let in where the first is dead."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from fleet_fixtures import CARS, FLEET, TinyFleet, tag
from supervision import Supervisor

from cloud_server.errors import CloudError, Stopped
from cloud_server.run.claim import FleetClaim
from cloud_server.run.service import serve
from protocol.messages import Status
from protocol.session.link import CloudLink, Received, encode_status
from protocol.session.memory import MemoryBus
from protocol.session.topics import CLOUD_ID, STATUS, topic

FIRST, SECOND = "a" * 16, "b" * 16
TOPIC = topic(STATUS, FLEET, CLOUD_ID)


class Cloud:
    """One that claims the fleet and announces itself, on a clock that each look at moves by 0.1 s."""

    def __init__(self, bus: MemoryBus, session: str) -> None:
        self.bus = bus
        self.link = CloudLink(bus.client(session), FLEET)
        self.session = session
        self.beats = 0
        self.now = 0.0
        self.claim = FleetClaim(
            self.link, session, heartbeat_s=10.0, announce=self.announce, clock=self._moment
        )
        self.link.open(1)

    def _moment(self) -> float:
        self.now += 0.1
        return self.now

    def announce(self) -> None:
        self.link.announce(Status(vehicle=CLOUD_ID, session=self.session, online=True, beat=self.beats))
        self.beats += 1

    def take(self, patience_s: float = 100.0) -> list[Received]:
        return self.claim.take(patience_s, lambda: None)

    def listen(self) -> None:
        while (received := self.link.receive(0)) is not None:
            self.claim.note(received)


def test_first_cloud_of_a_fleet_takes_it_at_once() -> None:
    cloud = Cloud(MemoryBus(), FIRST)
    assert cloud.take() == []
    assert cloud.now < 2


def test_second_cloud_is_refused_while_the_first_lives() -> None:
    bus = MemoryBus()
    first = Cloud(bus, FIRST)
    first.take()
    first.announce()
    before = first.beats
    second = Cloud(bus, SECOND)
    bus.record(lambda name, payload, qos: first.listen())
    with pytest.raises(CloudError, match=f"fleet '{FLEET}' has a cloud already, which is alive; stop it"):
        second.take()
    assert second.now < 5, "the first answers, nobody waits for its next heartbeat"
    assert second.beats == 0
    assert first.beats > before


def test_cloud_that_died_without_a_will_is_waited_for_and_succeeded() -> None:
    bus = MemoryBus()
    dead = bus.client("dead")
    dead.connect(1)
    status = Status(vehicle=CLOUD_ID, session=FIRST, online=True, beat=7)
    dead.publish(TOPIC, encode_status(status), retain=True)
    second = Cloud(bus, SECOND)
    assert second.take() == []
    assert 20 < second.now < 30


def test_cloud_that_left_is_not_waited_for() -> None:
    bus = MemoryBus()
    gone = bus.client("gone")
    gone.connect(1)
    gone.publish(
        TOPIC, encode_status(Status(vehicle=CLOUD_ID, session=FIRST, online=False, beat=8)), retain=True
    )
    second = Cloud(bus, SECOND)
    second.take()
    assert second.now < 2


@pytest.mark.parametrize("first_to_speak", [0, 1])
def test_of_two_clouds_that_start_together_the_first_to_speak_stays(first_to_speak: int) -> None:
    bus = MemoryBus()
    clouds = [Cloud(bus, FIRST), Cloud(bus, SECOND)]
    for cloud in clouds:
        cloud.take()
    stays, leaves = clouds[first_to_speak], clouds[1 - first_to_speak]
    stays.announce()
    leaves.announce()
    stays.listen()
    with pytest.raises(CloudError, match="has a cloud already"):
        leaves.listen()


def test_cloud_that_was_cut_off_yields_to_its_successor() -> None:
    bus = MemoryBus()
    first = Cloud(bus, FIRST)
    first.take()
    first.announce()
    first.listen()
    first.link.transport.drop()  # type: ignore[attr-defined]
    second = Cloud(bus, SECOND)
    second.take()
    second.announce()
    second.listen()
    first.claim.reconnected()
    first.link.transport.connect(1)
    first.announce()
    second.listen()
    with pytest.raises(CloudError, match="has a cloud already"):
        first.listen()


def test_what_vehicles_say_meanwhile_is_kept_for_the_desk() -> None:
    bus = MemoryBus()
    car = bus.client("car")
    car.connect(1)
    status = Status(vehicle="car-1", session="c" * 16, online=True, beat=0)
    car.publish(topic(STATUS, FLEET, "car-1"), encode_status(status), retain=True)
    [held] = Cloud(bus, FIRST).take()
    assert held.message == status


def test_broker_that_hands_nothing_on_is_named() -> None:
    bus = MemoryBus()
    bus.set_faults(drop=lambda name, payload: True)
    with pytest.raises(CloudError, match=f"takes what this cloud says on {TOPIC} and does not hand it on"):
        Cloud(bus, FIRST).take(patience_s=3)


def test_claim_that_is_stopped_ends() -> None:
    def stop() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        Cloud(MemoryBus(), FIRST).claim.take(10, stop)


def test_run_of_the_first_cloud_is_not_disturbed(undisturbed: TinyFleet, tmp_path: Path) -> None:
    """A second cloud with other settings comes by while the first gathers its vehicles."""
    bus = MemoryBus()
    fleet, other = TinyFleet(undisturbed.world, tmp_path / "a"), TinyFleet(undisturbed.world, tmp_path / "b")
    refusals: list[str] = []
    welcome = threading.Event()
    bus.record(lambda name, payload, qos: welcome.set() if tag(payload) == "welcome" else None)

    def second_cloud() -> None:
        assert welcome.wait(30)
        with pytest.raises(CloudError) as refusal:
            serve(
                other.config,
                lambda client_id, will, on_connect: bus.client(client_id, will=will, on_connect=on_connect),
                run_folder=other.run_folder,
                resume=False,
                stop=threading.Event(),
            )
        refusals.append(str(refusal.value))

    supervisor = Supervisor(fleet, bus)
    supervisor.before_vehicle(CARS[1], second_cloud)
    supervisor.run()
    assert len(refusals) == 1 and f"fleet '{FLEET}' has a cloud already" in refusals[0]
    assert fleet.fingerprint() == undisturbed.fingerprint()
    assert fleet.events("restarted") == []
    assert not list((other.run_folder).glob("result.json"))
