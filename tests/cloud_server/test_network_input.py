"""A hostile or broken peer on the bus: all that it says is rejected, counted, logged, and changes nothing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
from fleet_fixtures import FLEET, TinyFleet, tag
from hypothesis import given, settings
from hypothesis import strategies as st
from supervision import Supervisor
from wrong_messages import (
    CAR,
    OTHER,
    SOUND_HELLO,
    Wrong,
    features_of,
    packed,
    wrong_bytes,
    wrong_hellos,
    wrong_requests,
)

from edge_client.conversation import Conversation, Patience
from edge_client.errors import VehicleError
from protocol.messages import (
    Feedback,
    Hello,
    Query,
    Reject,
    Status,
    Turn,
    TurnDone,
    Up,
    Upload,
)
from protocol.session import topics
from protocol.session.link import CloudLink, Malformed, Received, VehicleLink
from protocol.session.memory import MemoryBus, MemoryTransport


class Attacker:
    """Speaks once in a vehicle's name, in the middle of a turn of its."""

    def __init__(self, bus: MemoryBus, *, before: str, say: Callable[[Turn, Hello], list[Wrong]]) -> None:
        """`before`: the tag of the message of CAR's first training turn at which it interrupts."""
        self.wrong: list[Wrong] = []
        self.client: MemoryTransport = bus.client("attacker")
        self.client.connect(0)
        self._before = before
        self._say = say
        self._hello: Hello | None = None
        self._turn: Turn | None = None
        self._spoken = False
        bus.record(self._listen)

    def _listen(self, topic: str, payload: bytes, qos: int) -> None:
        if self._spoken or topics.parse(topic).vehicle != CAR:
            return
        if tag(payload) == "hello":
            self._hello = msgspec.msgpack.decode(payload[1:], type=Hello)
        elif tag(payload) == "turn":
            self._turn = msgspec.msgpack.decode(payload[1:], type=Turn)
        elif tag(payload) == self._before and self._turn and self._turn.turn_id > 0:
            assert self._hello is not None
            self._spoken = True
            self.wrong = self._say(self._turn, self._hello)
            for wrong in self.wrong:
                self.client.publish(topics.topic(topics.UP, FLEET, CAR), wrong.payload)


def _everything_wrong(turn: Turn, hello: Hello) -> list[Wrong]:
    return [*wrong_requests(turn), *wrong_bytes(turn), *wrong_hellos(hello)]


def _wrong_at_the_end(turn: Turn, hello: Hello) -> list[Wrong]:
    """Requests of a turn whose uploads are complete."""
    header = {"vehicle": CAR, "grant": turn.grant, "turn_id": turn.turn_id}
    again = Upload(**header, step=10**6, split="train", frames=(4, 5), features=features_of(2))  # type: ignore[arg-type]
    done = TurnDone(**header, step=10**6, loss=float("nan"))  # type: ignore[arg-type]
    return [
        Wrong("frames that are here already", packed(again), "train frame 4 is uploaded twice"),
        Wrong("loss that is no number", packed(done), "loss must be finite, got nan"),
    ]


@pytest.mark.parametrize(
    ("before", "say", "at_least"), [("query", _everything_wrong, 60), ("done", _wrong_at_the_end, 2)]
)
def test_wrong_messages_are_rejected_one_by_one_and_change_nothing(
    before: str,
    say: Callable[[Turn, Hello], list[Wrong]],
    at_least: int,
    undisturbed: TinyFleet,
    tmp_path: Path,
) -> None:
    bus = MemoryBus()
    attacker = Attacker(bus, before=before, say=say)
    fleet = TinyFleet(undisturbed.world, tmp_path)
    Supervisor(fleet, bus).run()
    rejects = fleet.events("reject")
    assert len(attacker.wrong) >= at_least
    for wrong, reject in zip(attacker.wrong, rejects, strict=True):
        assert wrong.reason in reject["reason"], f"{wrong.name}: {reject['reason']}"
        assert "\n" not in reject["reason"]
    assert [reject["count"] for reject in rejects] == list(range(1, len(rejects) + 1))
    result = fleet.result()
    assert result["vehicles"][CAR]["rejects"] == len(attacker.wrong)
    assert result["vehicles"][OTHER]["rejects"] == 0
    assert fleet.fingerprint() == undisturbed.fingerprint()


def _hello(fleet: TinyFleet, vehicle: str) -> Hello:
    """What a sound vehicle of this fleet says of itself."""
    return msgspec.structs.replace(
        SOUND_HELLO,
        vehicle=vehicle,
        bundle_digest=fleet.digest(),
        frames={split: len(keys) for split, keys in fleet.frames[CAR].items()},
        frames_digest=fleet.frames_digest(CAR),
    )


def test_strangers_and_forged_statuses_change_nothing(undisturbed: TinyFleet, tmp_path: Path) -> None:
    bus = MemoryBus()
    fleet = TinyFleet(undisturbed.world, tmp_path)
    heard: list[Reject] = []
    intruder = VehicleLink(bus.client("intruder"), FLEET, "intruder")
    intruder.open(1)
    spoken = threading.Event()

    def speak(topic: str, payload: bytes, qos: int) -> None:
        if spoken.is_set() or topic != topics.topic(topics.UP, FLEET, CAR) or tag(payload) != "query":
            return
        spoken.set()
        intruder.send(_hello(fleet, "intruder"))
        intruder.send(TurnDone(vehicle="intruder", grant="0" * 16, turn_id=1, step=0, loss=None))
        forged = Status(vehicle=CAR, session="0" * 16, online=False, beat=99)
        intruder.transport.publish(topics.topic(topics.STATUS, FLEET, CAR), packed(forged))
        intruder.transport.publish(topics.topic(topics.STATUS, FLEET, "nobody"), b"\x00\xff")
        intruder.transport.publish(topics.topic(topics.UP, FLEET, "nobody"), b"rubbish")
        intruder.transport.publish(f"{topics.PREFIX}/{FLEET}/no body/up", b"\x00")

    bus.record(speak)
    Supervisor(fleet, bus).run()
    while (received := intruder.receive(0)) is not None:
        assert isinstance(received, Received)
        if isinstance(received.message, Reject):
            heard.append(received.message)
    assert [reject.final for reject in heard] == [True, False]
    assert "vehicle 'intruder' is not in this fleet (2 vehicles: car-1, car-2)" in heard[0].reason
    assert fleet.result()["strangers"] == 5
    assert fleet.fingerprint() == undisturbed.fingerprint()


def test_wrong_messages_to_a_vehicle_change_nothing(
    undisturbed: TinyFleet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bus = MemoryBus()
    fleet = TinyFleet(undisturbed.world, tmp_path)
    attacker = bus.client("attacker")
    attacker.connect(0)
    turns: list[Turn] = []
    down = topics.topic(topics.DOWN, FLEET, CAR)

    def speak(topic: str, payload: bytes, qos: int) -> None:
        if topic != down or len(turns) > 2 or tag(payload) not in ("turn", "feedback"):
            return
        if tag(payload) == "turn":
            turns.append(msgspec.msgpack.decode(payload[1:], type=Turn))
        elif len(turns) == 2:
            header = {"vehicle": CAR, "turn_id": turns[1].turn_id}
            ours, other = turns[1].grant, "0" * 16
            turns.append(turns[1])  # spoken
            refusal = Reject(vehicle=CAR, grant=other, step=0, reason="go away", final=True)
            for wrong in (
                b"",
                np.random.default_rng(2).bytes(300),
                payload[:-3],
                packed(Feedback(**header, grant=other, step=0, losses=(0.0,))),  # type: ignore[arg-type]
                packed(Feedback(**header, grant=ours, step=10**6, losses=(0.0,))),  # type: ignore[arg-type]
                packed(Feedback(vehicle=OTHER, turn_id=1, grant=ours, step=1, losses=(0.0,))),
                packed(refusal),
                packed(msgspec.structs.replace(refusal, grant=ours, step=10**6)),
                packed(turns[0]),  # an old turn
                packed(msgspec.structs.replace(turns[1], grant=other)),  # of no cloud
            ):
                attacker.publish(down, wrong)

    bus.record(speak)
    with caplog.at_level(logging.WARNING):
        Supervisor(fleet, bus).run()
    assert len(turns) > 2
    ignored = [record.message for record in caplog.records if "ignored a malformed" in record.message]
    assert len(ignored) == 4 and not any("\n" in line for line in ignored)
    assert fleet.fingerprint() == undisturbed.fingerprint()


class BrokenVehicle:
    """Ends its first turn without having done anything."""

    def __init__(self, fleet: TinyFleet, bus: MemoryBus) -> None:
        self._link = VehicleLink(bus.client(f"{FLEET}-{CAR}"), FLEET, CAR)
        self._patience = Patience(retry_s=0.1, give_up_s=5)
        self._fleet = fleet
        self._bus = bus

    def run(self) -> str:
        """Returns what it is told."""
        self._link.open(1)
        hello = _hello(self._fleet, CAR)
        talk = Conversation(
            self._link,
            self._patience,
            session=hello.session,
            stop=threading.Event(),
            on_new_cloud=partial(self._link.send, hello),
            alive=lambda: None,
        )
        try:
            while True:
                turn = next(talk.arrived(0.1), None)
                if isinstance(turn, Turn):
                    done = TurnDone(vehicle=CAR, grant=turn.grant, turn_id=turn.turn_id, step=0, loss=None)
                    talk.ask(turn, [done])
        except VehicleError as error:
            return str(error)
        finally:
            self._link.close()


def test_vehicle_that_breaks_the_protocol_ends_alone_and_may_come_back(
    undisturbed: TinyFleet, tmp_path: Path
) -> None:
    bus = MemoryBus()
    fleet = TinyFleet(undisturbed.world, tmp_path)
    told: list[str] = []
    supervisor = Supervisor(fleet, bus)
    supervisor.before_vehicle(CAR, lambda: told.append(BrokenVehicle(fleet, bus).run()))
    supervisor.run()
    assert told == ["the cloud rejects this vehicle's message: turn 0 ended with 0 of 2 test frames uploaded"]
    assert fleet.result()["vehicles"][CAR]["rejects"] == 1
    assert fleet.fingerprint() == undisturbed.fingerprint()


def _cloud_link() -> tuple[CloudLink, MemoryTransport]:
    bus = MemoryBus()
    link = CloudLink(bus.client("cloud"), FLEET)
    link.open(1)
    peer = bus.client("peer")
    peer.connect(1)
    return link, peer


_SOUND: list[Up] = [
    SOUND_HELLO,
    Query(vehicle=CAR, grant="0" * 16, turn_id=1, step=3, frames=(0, 1), features=features_of(2)),
    TurnDone(vehicle=CAR, grant="0" * 16, turn_id=1, step=9, loss=0.5),
]


@settings(max_examples=300, deadline=None)
@given(payload=st.binary(max_size=400))
def test_random_bytes_are_malformed(payload: bytes) -> None:
    link, peer = _cloud_link()
    peer.publish(topics.topic(topics.UP, FLEET, CAR), payload)
    outcome = link.receive(0)
    assert outcome is None or isinstance(outcome, Malformed)
    if isinstance(outcome, Malformed):
        assert outcome.vehicle == CAR and outcome.packet_bytes > len(payload)
        assert "\n" not in outcome.reason


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_messages_are_malformed_or_typed(data: st.DataObject) -> None:
    payload = bytearray(packed(data.draw(st.sampled_from(_SOUND))))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    link, peer = _cloud_link()
    peer.publish(topics.topic(topics.UP, FLEET, CAR), bytes(payload))
    outcome = link.receive(0)
    if isinstance(outcome, Received):
        assert outcome.message.vehicle == CAR
        assert isinstance(outcome.message, Hello | Query | TurnDone)
