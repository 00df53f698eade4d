"""The two ends of a link over a bus in memory."""

from __future__ import annotations

from protocol.messages import Hello
from protocol.session import topics
from protocol.session.link import CloudLink, Malformed
from protocol.session.memory import MemoryBus
from protocol.session.parts import split

FLEET = "tiny"
HELLO = Hello(
    vehicle="car-1",
    session="0" * 16,
    protocol=1,
    encoder="stride8-c4",
    bundle_digest="d",
    feature_shape=(4, 6, 8),
    image_size=(64, 48),
    label_space="camvid",
    frames={"train": 1},
)


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
