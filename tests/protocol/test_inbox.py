"""Senders take turns, none takes another's room, and who talks nonsense is not heard for a while."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable, Iterator

import pytest

from protocol.session import parts
from protocol.session.inbox import FairInbox, Mutes, Waiting
from protocol.session.intake import Intake
from protocol.session.link import CloudLink, Malformed
from protocol.session.memory import MemoryBus
from protocol.session.topics import UP, topic
from protocol.session.transport import Delivery


def _inbox() -> FairInbox[int]:
    return FairInbox(most=50, most_of_one=10, most_bytes_of_one=100)


def test_senders_are_read_in_turn_each_in_its_order() -> None:
    inbox = _inbox()
    for number in range(4):
        assert inbox.offer(Waiting("flooder", number, 1))
    assert inbox.offer(Waiting("honest", 10, 1)) and inbox.offer(Waiting("honest", 11, 1))
    read = [inbox.get(timeout=0).item for _ in range(6)]
    assert read == [0, 10, 1, 11, 2, 3]
    with pytest.raises(queue.Empty):
        inbox.get(timeout=0)


def test_room_of_each_sender_is_bounded_by_messages_and_by_bytes() -> None:
    inbox = _inbox()
    assert [inbox.offer(Waiting("many", number, 1)) for number in range(12)] == [True] * 10 + [False] * 2
    assert inbox.offer(Waiting("large", 0, 1000)), "a single message has room whatever its size"
    assert not inbox.offer(Waiting("large", 1, 1))
    assert [inbox.offer(Waiting("some", number, 40)) for number in range(3)] == [True, True, False]
    assert inbox.qsize() == 13
    for _ in range(13):
        inbox.get(timeout=0)
    assert inbox.offer(Waiting("large", 2, 1000)), "what was read makes room"


class _Clock:
    time_s = 0.0

    def now(self) -> float:
        return self.time_s

    def notify(self, inbox: object) -> None:
        pass


def test_mute_takes_many_refusals_in_short_time_and_ends() -> None:
    clock, told = _Clock(), list[tuple[str, int, float]]()
    mutes = Mutes(clock, lambda *words: told.append(words))  # type: ignore[arg-type]  # tells the time only
    for _ in range(3000):  # as a bad link may bring: 40 a second
        clock.time_s += 0.025
        mutes.refused("unlucky")
    assert not told
    for _ in range(201):
        mutes.refused("flooder")
    assert told == [("flooder", 1, 10.0)]
    assert mutes.muted() == {"flooder"}
    assert not mutes.hears("flooder") and mutes.hears("unlucky")
    assert mutes.unheard == 1
    clock.time_s += 10.1
    assert mutes.muted() == frozenset() and mutes.hears("flooder")
    for _ in range(201):
        mutes.refused("flooder")
    assert told[-1] == ("flooder", 2, 20.0), "who goes on is muted for longer"


def test_mute_comes_of_sending_too_much_whatever_it_is() -> None:
    clock, told = _Clock(), list[tuple[str, int, float]]()
    mutes = Mutes(clock, lambda *words: told.append(words))  # type: ignore[arg-type]  # tells the time only
    for _ in range(20_000):
        clock.time_s += 1 / 900
        assert mutes.hears("fast")
    heard = 0
    while not told:
        clock.time_s += 1e-4
        heard += mutes.hears("flooder")
    assert 10_000 <= heard < 20_000 and told == [("flooder", 1, 10.0)]


def test_statuses_are_too_many_at_any_pace_at_which_they_are_read() -> None:
    clock, told = _Clock(), list[tuple[str, int, float]]()
    mutes = Mutes(clock, lambda *words: told.append(words))  # type: ignore[arg-type]  # tells the time only
    for _ in range(4_000):
        clock.time_s += 0.1
        assert mutes.hears("frequent", is_status=True)
    while not told:
        clock.time_s += 0.02
        mutes.hears("flooder", is_status=True)
    assert told == [("flooder", 1, 10.0)]


def test_refused_flood_is_cut_off_before_it_is_read(caplog: pytest.LogCaptureFixture) -> None:
    bus = MemoryBus()
    transport = bus.client("cloud", on_connect=lambda: None)
    link = CloudLink(transport, "f", vehicles=["car-1", "car-2"])
    link.open(1)
    flooder = bus.client("flooder")
    flooder.connect(1)
    heard = 0
    for _ in range(2000):
        flooder.publish(topic(UP, "f", "car-1"), b"\x07")
        received = link.receive(0)
        heard += isinstance(received, Malformed)
        if received is not None:
            link.refused(received.vehicle)
    assert 100 <= heard <= 250
    assert sum("not heard for 10 s" in record.message for record in caplog.records) == 1
    flooder.publish(topic(UP, "f", "car-2"), b"\x07")
    assert isinstance(link.receive(0), Malformed), "others are heard as before"
    assert transport.traffic.received_packets < 400, "the broker does not even send it"


def _beginnings() -> Iterator[bytes]:
    """Of messages that never end."""
    return (parts.split(bytes(2000), 1200, number)[0] for number in itertools.count())


def _repetitions() -> Iterator[bytes]:
    return itertools.repeat(parts.split(bytes(4000), 1200, 1)[0])


def _small_beginnings() -> Iterator[bytes]:
    return (parts.split(bytes(40), 30, number)[0] for number in itertools.count())


@pytest.mark.parametrize("payloads", [_beginnings, _repetitions, _small_beginnings])
def test_parts_that_come_to_nothing_are_soon_too_many(payloads: Callable[[], Iterator[bytes]]) -> None:
    intake, clock = _intake()
    for payload in itertools.islice(payloads(), 20_000):
        clock.time_s += 1e-4
        intake.deliver(Delivery(topic(UP, "f", "car-1"), payload, retained=False))
        if intake.mutes.count:
            break
    assert intake.mutes.muted() == {"car-1"} and clock.time_s < 0.2


def test_large_message_is_not_too_much_with_a_repetition_of_its_latest_parts() -> None:
    intake, clock = _intake()
    pieces = parts.split(bytes(5_000_000), 1200, 1)
    for number, payload in enumerate(pieces):
        clock.time_s += 2e-3
        sent = pieces[max(0, number - 255) : number + 1] if number % 1000 == 999 else [payload]
        for again in sent:
            intake.deliver(Delivery(topic(UP, "f", "car-1"), again, retained=False))
    assert intake.mutes.count == 0 and intake.held_bytes == 0, "it has arrived"


def _intake() -> tuple[Intake, _Clock]:
    clock = _Clock()
    made = Intake(
        clock=clock,  # type: ignore[arg-type]  # tells the time only
        limit_bytes=1 << 26,
        may_send_parts=lambda vehicle: True,
        say=lambda name, word: None,
        heed=lambda name, word: None,
    )
    return made, clock
