"""Flow control between the two ends of a link: nothing too large, too much, twice, or for ever in line."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_bus import HandClock, SlowBus, SlowTransport

from protocol.codec.weights import WeightTensor
from protocol.messages import Ack, FetchWeights, Hello, Labels, OfferedLabel, Reject, Status, Weights
from protocol.session import topics
from protocol.session.link import CloudLink, Malformed, MessageTooLarge, Received, TooManyWaiting, VehicleLink
from protocol.session.memory import MemoryBus
from protocol.session.parts import is_part, read_word, split

FLEET = "tiny"
CAR = "car-1"
HEADER = {"vehicle": CAR, "grant": "0" * 16, "turn_id": 1, "step": 3}
HELLO = Hello(
    vehicle=CAR,
    session="0" * 16,
    protocol=2,
    encoder="stride8-c4",
    bundle_digest="d",
    feature_shape=(4, 6, 8),
    image_size=(64, 48),
    label_space="camvid",
    frames={"train": 1},
    frames_digest="00",
)


def large(size: int, step: int = 3) -> Labels:
    label = OfferedLabel(index=0, key="k", digest=b"d", height=1, width=1)
    header = {**HEADER, "step": step}
    return Labels(**header, labels=((label, random.Random(step).randbytes(size)),))  # type: ignore[arg-type]


def weights(vehicle: str, tensors: tuple[WeightTensor, ...]) -> Weights:
    return Weights(vehicle=vehicle, grant="0" * 16, turn_id=1, step=0, tensors=tensors)


class Ends:
    """A vehicle and the cloud over a bus that moves by hand."""

    def __init__(self, payload_limit_bytes: int = 1024, limit_bytes: int = 1 << 26) -> None:
        self.bus, self.clock = SlowBus(), HandClock()
        self.vehicle = VehicleLink(
            self.bus.client(), FLEET, CAR, payload_limit_bytes=payload_limit_bytes, clock=self.clock
        )
        self.cloud = CloudLink(
            self.bus.client(),
            FLEET,
            payload_limit_bytes=payload_limit_bytes,
            limit_bytes=limit_bytes,
            clock=self.clock,
        )
        for link in (self.vehicle, self.cloud):
            link.open(1)

    def arrived(self) -> list[object]:
        """What the cloud has got."""
        found = []
        while (received := self.cloud.receive(0)) is not None:
            assert isinstance(received, Received), received
            found.append(received.message)
        return found

    def under_way(self) -> list[bytes]:
        """What the vehicle has published and nobody has acknowledged."""
        transport = self.vehicle.transport
        assert isinstance(transport, SlowTransport)
        return [packet.payload for packet in transport.under_way]


def test_parts_of_strangers_are_refused_and_not_kept() -> None:
    bus = MemoryBus()
    link = CloudLink(bus.client("cloud"), FLEET, vehicles=["car-1"])
    link.open(1)
    peer = bus.client("peer")
    peer.connect(1)
    for part in split(bytes(100), 60, 1):
        peer.publish(topics.topic(topics.UP, FLEET, "stranger"), part)
    refused = link.receive(0)
    assert isinstance(refused, Malformed) and refused.vehicle == "stranger"
    assert refused.reason == "a part of a message, and 'stranger' is not in this fleet"


def test_sending_is_done_when_the_broker_has_it() -> None:
    ends = Ends()
    sending = ends.vehicle.send(HELLO)
    assert not sending.done
    ends.clock.time_s = 123.0
    ends.bus.run()
    assert sending.done_at == 123.0 and ends.arrived() == [HELLO]


def test_message_in_parts_is_done_when_its_receiver_has_all_of_it() -> None:
    ends = Ends()
    message = large(20_000)
    sending = ends.vehicle.send(message)
    while ends.under_way() and not sending.done:
        ends.vehicle.transport.step()  # type: ignore[attr-defined]
    assert not sending.done, "the broker has all parts, the receiver's word is under way"
    ends.bus.run()
    assert sending.done and ends.arrived() == [message]


@pytest.mark.parametrize("size", [500, 20_000])
def test_message_that_has_arrived_is_not_kept(size: int) -> None:
    ends = Ends()
    sending = ends.vehicle.send(large(size))
    assert sum(map(len, sending.frames.pieces)) > size
    ends.bus.run()
    assert sending.done and not sending.frames.pieces


def test_window_bounds_what_is_under_way_and_statuses_pass_by() -> None:
    ends = Ends(payload_limit_bytes=64 * 1024)
    ends.vehicle.send(large(3_000_000))
    at_once = sum(map(len, ends.under_way()))
    assert at_once <= 256 * 1024 + 64 * 1024 < 3_000_000
    ends.vehicle.announce(Status(vehicle=CAR, session="0" * 16, online=True, beat=1))
    ends.vehicle.transport.step()  # type: ignore[attr-defined]
    ends.bus.run(lambda payload: False)
    ends.vehicle.announce(Status(vehicle=CAR, session="0" * 16, online=True, beat=2))
    kinds = [type(message) for message in ends.arrived()]
    assert kinds[0] is Status and Labels in kinds


def test_slow_line_has_little_under_way_and_a_fast_one_much() -> None:
    sizes = {}
    for seconds in (13.0, 0.001):
        ends = Ends(payload_limit_bytes=128 * 1024)
        ends.vehicle.send(large(60_000_000))
        for _ in range(60):
            ends.clock.time_s += seconds
            for client in ends.bus.clients:
                client.step()
        sizes[seconds] = len(ends.under_way())
    assert sizes[13.0] <= 2 and sizes[0.001] >= 30, sizes


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 0.4))
def test_lost_parts_are_sent_again_and_nothing_else(seed: int, share: float) -> None:
    """What gets lost between broker and receiver comes again; no message comes twice, none is missing."""
    ends = Ends()
    draws = random.Random(seed)
    sent = [large(9_000, step) for step in range(4)]
    sendings = [ends.vehicle.send(message) for message in sent]
    for _ in range(400):
        ends.bus.run(
            lambda payload: (is_part(payload) or read_word(payload) is not None) and draws.random() < share
        )
        if all(sending.done for sending in sendings):
            break
        ends.clock.time_s += 6
        ends.vehicle.receive(0)
    assert all(sending.done for sending in sendings)
    assert sorted(ends.arrived(), key=lambda message: message.step) == sent  # type: ignore[attr-defined]


def test_reconnected_receiver_tells_where_to_go_on() -> None:
    ends = Ends()
    sending = ends.vehicle.send(large(20_000))
    for _ in range(5):
        ends.vehicle.transport.step()  # type: ignore[attr-defined]
    lost = 0
    while ends.vehicle.transport.step(lambda payload: True):  # type: ignore[attr-defined]
        lost += 1
    assert lost > 3 and not sending.done
    ends.cloud.resume()
    ends.bus.run()
    assert sending.done and len(ends.arrived()) == 1


def test_message_over_the_announced_limit_is_refused_before_its_first_part() -> None:
    ends = Ends(limit_bytes=10_000)
    ends.cloud.announce(Status(vehicle="cloud", session="1" * 16, online=True, beat=0))
    ends.bus.run()
    ends.vehicle.receive(0)
    message = large(10_000)
    size = len(msgspec.msgpack.encode(message))
    with pytest.raises(MessageTooLarge) as refusal:
        ends.vehicle.send(message)
    assert str(refusal.value) == (
        f"a message Labels of {size} bytes is more than the 10000 bytes that 'cloud' takes"
    )
    assert not ends.under_way()
    ends.vehicle.send(large(9_000))
    ends.bus.run()
    assert ends.arrived()[-1] == large(9_000)


def test_parts_keep_to_the_brokers_own_limit() -> None:
    ends = Ends(payload_limit_bytes=64 * 1024)
    ends.vehicle.transport.packet_limit_bytes = 2000  # type: ignore[misc]
    ends.vehicle.send(large(100_000))
    topic = topics.topic(topics.UP, FLEET, CAR)
    assert max(map(len, ends.under_way())) + len(topic) + 8 >= 2000 - 8
    assert all(len(payload) + len(topic) + 7 <= 2000 for payload in ends.under_way())


def test_vehicle_that_takes_nothing_holds_up_no_other() -> None:
    ends = Ends()
    tensors = (WeightTensor("w", (50_000,), bytes(200_000)),)
    for vehicle in ("deaf", CAR):
        ends.cloud.send(vehicle, weights(vehicle, tensors))
    ends.bus.run()
    received = ends.vehicle.receive(0)
    assert isinstance(received, Received) and received.message == weights(CAR, tensors)


def test_weights_for_many_vehicles_are_encoded_once() -> None:
    ends = Ends(payload_limit_bytes=64 * 1024)
    tensors = (WeightTensor("w", (1 << 18,), bytes(1 << 20)),)
    sendings = [ends.cloud.send(f"car-{i}", weights(f"car-{i}", tensors)) for i in range(5)]
    bodies = {id(sending.frames.pieces[1]) for sending in sendings}
    assert len(bodies) == 1
    ends.bus.run()
    received = ends.vehicle.receive(0)
    assert isinstance(received, Received) and received.message == weights(CAR, tensors)


def test_more_than_a_vehicle_can_ask_for_is_not_kept_and_counted() -> None:
    ends = Ends()
    ends.cloud.send("deaf", weights("deaf", (WeightTensor("w", (500_000,), bytes(2_000_000)),)))
    reject = Reject(vehicle="deaf", grant="", step=0, reason="of somebody else", final=False)
    with pytest.raises(TooManyWaiting, match="16 messages to 'deaf' wait already; Reject not sent"):
        for _ in range(100):
            ends.cloud.send("deaf", reject)
    with pytest.raises(TooManyWaiting, match="64 messages to 'deaf' wait already; Ack not sent"):
        for step in range(100):
            ends.cloud.send("deaf", Ack(vehicle="deaf", grant="0" * 16, turn_id=1, step=step))
    assert ends.cloud.undelivered == 2


def test_forgotten_requests_are_not_sent() -> None:
    ends = Ends(payload_limit_bytes=64 * 1024)
    ends.vehicle.send(large(3_000_000))
    ends.vehicle.forget()
    fetch = FetchWeights(**HEADER)  # type: ignore[arg-type]
    ends.vehicle.send(fetch)
    ends.bus.run()
    assert ends.arrived() == [fetch]


def test_status_that_waits_gives_way_to_a_newer_one() -> None:
    ends = Ends(payload_limit_bytes=64 * 1024)
    ends.vehicle.send(large(3_000_000))
    statuses = [Status(vehicle=CAR, session="0" * 16, online=True, beat=beat) for beat in range(9)]
    bytes_sent = sum(ends.vehicle.announce(status) for status in statuses)
    ends.bus.run()
    arrived = [message for message in ends.arrived() if isinstance(message, Status)]
    assert [status.beat for status in arrived] == [8]
    assert 60 < bytes_sent < 120
