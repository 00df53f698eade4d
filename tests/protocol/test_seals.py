"""Seals: who has the key is heard, once and by whom it is meant for; who has none changes nothing."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from turn_fixtures import empty_turn

from protocol.messages import Finish, Status, Welcome
from protocol.seal_files import SealFault, cloud_seal, make_seals, vehicle_seal
from protocol.session import topics
from protocol.session.link import CloudLink, Received, VehicleLink
from protocol.session.memory import MemoryBus
from protocol.session.seal import SealError
from protocol.session.transport import Delivery

FLEET, CAR, OTHER = "test", "car-1", "car-2"
_CLIENTS = map(str, itertools.count())
CLOUD_1, CLOUD_2, CAR_1, CAR_2 = (letter * 16 for letter in "abcd")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_seals(folder, FLEET, [CAR, OTHER])
    return folder


def _cloud(bus: MemoryBus, keys: Path | None, session: str = CLOUD_1) -> CloudLink:
    link = CloudLink(bus.client(next(_CLIENTS)), FLEET, seal=keys and cloud_seal(keys, FLEET, session))
    link.open(0)
    return link


def _car(bus: MemoryBus, keys: Path | None, session: str = CAR_1, cloud: str = CLOUD_1) -> VehicleLink:
    link = VehicleLink(
        bus.client(next(_CLIENTS)), FLEET, CAR, seal=keys and vehicle_seal(keys, FLEET, CAR, session)
    )
    link.open(0)
    link.meet(cloud)
    return link


def _heard(link: VehicleLink | CloudLink) -> list[object]:
    found = []
    while (received := link.receive(0.0)) is not None:
        found.append(received.message if isinstance(received, Received) else received.reason)
    return found


def test_words_of_who_has_the_key_are_heard_by_the_process_that_they_are_for(keys: Path) -> None:
    bus = MemoryBus()
    said: list[Delivery] = []
    cloud, car = _cloud(bus, keys), _car(bus, keys)
    bus.record(lambda topic, payload, qos: said.append(Delivery(topic, payload, False)))
    cloud.meet(CAR, CAR_1)
    words = [Welcome(vehicle=CAR, session=CAR_1), empty_turn(), Finish(vehicle=CAR, reason="over")]
    for word in words:
        cloud.send(CAR, word)
    assert _heard(car) == words
    next_life, next_cloud = _car(bus, keys, CAR_2), _car(bus, keys, cloud=CLOUD_2)
    for delivery in said:
        next_life._intake.deliver(delivery)
        next_cloud._intake.deliver(delivery)
    again = [each for each in _heard(next_life) if not isinstance(each, str)]
    assert again == [words[0], words[2]], "a turn is for one process of a vehicle"
    assert set(_heard(next_cloud)) == {"sealed with another key, or for another process or run"}


def test_words_without_the_key_are_nobody_s(keys: Path, tmp_path: Path) -> None:
    make_seals(tmp_path, FLEET, [CAR])
    for stranger in (None, tmp_path):
        bus = MemoryBus()
        cloud, car = _cloud(bus, keys), _car(bus, keys)
        _cloud(bus, stranger).send(CAR, Finish(vehicle=CAR, reason="forged"))
        _cloud(bus, stranger).announce(Status(vehicle="cloud", session=CLOUD_2, online=True, beat=0))
        _car(bus, stranger).announce(Status(vehicle=CAR, session=CAR_2, online=False, beat=0))
        for end, count in ((car, 2), (cloud, 2)):
            heard = _heard(end)
            assert len(heard) == count
            assert all(str(each).startswith(("not sealed", "sealed with")) for each in heard)


def test_vehicle_speaks_for_no_other_vehicle_and_not_for_its_cloud(keys: Path) -> None:
    own = vehicle_seal(keys, FLEET, CAR, CAR_1)
    other, cloud = vehicle_seal(keys, FLEET, OTHER, CAR_2), cloud_seal(keys, FLEET, CLOUD_1)
    own.cloud_session = other.cloud_session = CLOUD_1
    for channel, receiver in ((topics.STATUS, cloud), (topics.UP, cloud), (topics.DOWN, other)):
        forged = b"".join(own.close(channel, OTHER, [b"content"]))
        with pytest.raises(SealError, match="sealed with another key"):
            receiver.open(channel, OTHER, forged)


def test_who_has_no_key_reads_what_is_sealed_and_hears_anybody(keys: Path) -> None:
    bus = MemoryBus()
    car = _car(bus, None)
    cloud = _cloud(bus, keys)
    cloud.send(CAR, Finish(vehicle=CAR, reason="over"))
    assert _heard(car) == [Finish(vehicle=CAR, reason="over")]


def test_key_of_a_folder_is_kept_and_another_s_is_refused(keys: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in keys.iterdir()}
    make_seals(keys, FLEET, [CAR, OTHER])
    assert {path.name: path.read_bytes() for path in keys.iterdir()} == before
    with pytest.raises(SealFault, match=r"is the seal of test car-1, expected demo car-1"):
        vehicle_seal(keys, "demo", CAR, CAR_1)
    with pytest.raises(SealFault, match=r"can't read the seal .*cloud.seal: No such file"):
        cloud_seal(tmp_path, FLEET, CLOUD_1)
    for content in ("", "blackfleet-seal test car-1 12 34\n", "é"):
        (tmp_path / "car-1.seal").write_text(content)
        with pytest.raises(SealFault, match="is no seal"):
            vehicle_seal(tmp_path, FLEET, CAR, CAR_1)


def test_malformed_seals_are_refused(keys: Path) -> None:
    seal = cloud_seal(keys, FLEET, CLOUD_1)
    for message in (b"", b"\xc1", b"\xc1" + bytes(16), b"\xc1\x07" + bytes(40), b"\xc1\x00" + bytes(40)):
        with pytest.raises(SealError):
            seal.open(topics.UP, CAR, message)
