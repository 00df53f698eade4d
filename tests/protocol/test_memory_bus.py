"""The in-memory broker against what MQTT promises, and its faults."""

from __future__ import annotations

import threading

import pytest

from protocol.session.memory import MemoryBus, MemoryTransport
from protocol.session.transport import BrokerUnreachable, Delivery, Will, publish_packet_bytes, topic_matches


def listening(bus: MemoryBus, topic_filter: str, client_id: str = "listener") -> tuple[MemoryTransport, list]:
    deliveries: list[Delivery] = []
    client = bus.client(client_id)
    client.subscribe(topic_filter, deliveries.append)
    client.connect(1)
    return client, deliveries


def connected(bus: MemoryBus, client_id: str = "talker", will: Will | None = None) -> MemoryTransport:
    client = bus.client(client_id, will=will)
    client.connect(1)
    return client


@pytest.mark.parametrize(
    ("topic_filter", "topic", "matches"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/b/c", "a/b", False),
        ("a/+/c", "a/b/c", True),
        ("a/+", "a/b/c", False),
        ("a/+", "a/", True),
        ("+/b", "/b", True),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("#", "a/b", True),
        ("#", "$SYS/uptime", False),
        ("+/uptime", "$SYS/uptime", False),
        ("$SYS/#", "$SYS/uptime", True),
    ],
)
def test_topic_filter_matches_as_in_the_standard(topic_filter: str, topic: str, matches: bool) -> None:
    assert topic_matches(topic_filter, topic) is matches


@pytest.mark.parametrize(("payload_len", "length_bytes"), [(122, 1), (123, 2), (16378, 2), (16379, 3)])
def test_packet_size_grows_with_its_length_field(payload_len: int, length_bytes: int) -> None:
    assert publish_packet_bytes("a/b", payload_len, 0) == 1 + length_bytes + 2 + 3 + payload_len
    assert publish_packet_bytes("a/b", 0, 1) == publish_packet_bytes("a/b", 0, 0) + 2


def test_delivery_follows_the_order_of_publishing_even_from_a_handler() -> None:
    bus = MemoryBus()
    _, seen = listening(bus, "#")
    echo = bus.client("echo")
    echo.subscribe("in/+", lambda delivery: echo.publish("out", delivery.payload))
    echo.connect(1)
    talker = connected(bus)
    talker.publish("in/1", b"1")
    talker.publish("in/2", b"2")
    assert [(d.topic, d.payload) for d in seen] == [
        ("in/1", b"1"),
        ("out", b"1"),
        ("in/2", b"2"),
        ("out", b"2"),
    ]


def test_retained_message_reaches_a_later_subscriber_until_it_is_cleared() -> None:
    bus = MemoryBus()
    talker = connected(bus)
    talker.publish("status", b"old", retain=True)
    talker.publish("status", b"new", retain=True)
    _, seen = listening(bus, "status", "early")
    assert seen == [Delivery("status", b"new", retained=True)]
    talker.publish("status", b"newer", retain=True)
    assert seen[1] == Delivery("status", b"newer", retained=False)
    talker.publish("status", b"", retain=True)
    _, seen = listening(bus, "status", "late")
    assert seen == []


def test_will_is_published_after_a_drop_but_not_after_close() -> None:
    bus = MemoryBus()
    _, seen = listening(bus, "will/+")
    connected(bus, "a", Will("will/a", b"gone")).drop()
    connected(bus, "b", Will("will/b", b"gone")).close()
    assert [delivery.topic for delivery in seen] == ["will/a"]


def test_second_client_of_an_id_takes_over() -> None:
    bus = MemoryBus()
    _, seen = listening(bus, "will/+")
    first = connected(bus, "same", Will("will/same", b"gone"))
    second = connected(bus, "same")
    assert not first.connected and second.connected and len(seen) == 1


def test_reconnect_resubscribes_announces_and_sends_what_waited() -> None:
    bus = MemoryBus()
    _, seen = listening(bus, "out/+")
    inbox: list[Delivery] = []
    client = bus.client("a", on_connect=lambda: client.publish("out/birth", b""))
    client.subscribe("in", inbox.append)
    client.connect(1)
    client.drop()
    assert client.seconds_disconnected() > 0
    client.publish("out/waits", b"")
    client.publish("out/lost", b"", qos=0)
    connected(bus).publish("in", b"missed")
    client.connect(1)
    connected(bus).publish("in", b"heard")
    assert client.seconds_disconnected() == 0
    assert [delivery.topic for delivery in seen] == ["out/birth", "out/birth", "out/waits"]
    assert [delivery.payload for delivery in inbox] == [b"heard"]
    assert client.traffic.reconnects == 1 and client.traffic.dropped == 1


def test_exception_in_a_handler_is_counted_and_harms_nobody() -> None:
    bus = MemoryBus()
    client = bus.client("broken")
    client.subscribe("#", lambda _: 1 / 0)
    client.connect(1)
    _, seen = listening(bus, "#")
    connected(bus).publish("a", b"")
    assert client.traffic.handler_errors == 1 and len(seen) == 1


def test_traffic_counts_whole_packets() -> None:
    bus = MemoryBus()
    listener, _ = listening(bus, "#")
    talker = connected(bus)
    talker.publish("topic", b"payload")
    size = publish_packet_bytes("topic", 7, 1)
    assert (talker.traffic.sent_packets, talker.traffic.sent_bytes) == (1, size)
    assert (listener.traffic.received_packets, listener.traffic.received_bytes) == (1, size)


def test_faults_drop_duplicate_and_delay_what_the_predicates_choose() -> None:
    bus = MemoryBus()
    recorded: list[bytes] = []
    bus.record(lambda _topic, payload, _qos: recorded.append(payload))
    bus.set_faults(
        drop=lambda _, payload: payload == b"drop",
        duplicate=lambda _, payload: payload == b"twice",
        delay=lambda _, payload: payload == b"late",
    )
    _, seen = listening(bus, "#")
    talker = connected(bus)
    for payload in (b"drop", b"late", b"twice", b"once"):
        talker.publish("a", payload)
    assert [delivery.payload for delivery in seen] == [b"twice", b"twice", b"late", b"once"]
    assert recorded == [b"drop", b"late", b"twice", b"once"]


def test_publishers_in_several_threads_lose_nothing() -> None:
    bus = MemoryBus()
    _, seen = listening(bus, "#")
    clients = [connected(bus, f"talker-{i}") for i in range(4)]

    def talk(client: MemoryTransport) -> None:
        for i in range(200):
            client.publish(client.client_id, i.to_bytes(2, "big"))

    threads = [threading.Thread(target=talk, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in clients:
        mine = [delivery.payload for delivery in seen if delivery.topic == client.client_id]
        assert mine == [i.to_bytes(2, "big") for i in range(200)]


def test_wildcard_in_a_published_topic_is_refused() -> None:
    with pytest.raises(ValueError, match="wildcards, got 'a/\\+'"):
        connected(MemoryBus()).publish("a/+", b"")


def test_closed_client_does_not_connect_again() -> None:
    client = connected(MemoryBus())
    client.close()
    with pytest.raises(BrokerUnreachable, match="was closed"):
        client.connect(1)


def test_a_message_costs_the_same_however_many_clients_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    bus, heard = MemoryBus(), list[str]()
    for number in range(200):
        client = bus.client(f"car-{number}")
        client.subscribe(f"fleet/{number}/down", lambda delivery: heard.append(delivery.topic))
        client.connect(0.0)
    cloud = bus.client("cloud")
    cloud.connect(0.0)
    cloud.subscribe("fleet/+/up", lambda delivery: heard.append(delivery.topic))
    asked: list[str] = []
    hears = MemoryTransport.hears
    monkeypatch.setattr(
        MemoryTransport, "hears", lambda self, topic: asked.append(self.client_id) or hears(self, topic)
    )
    cloud.publish("fleet/7/down", b"")
    assert (heard, asked) == (["fleet/7/down"], ["cloud"])
    cloud.unsubscribe("fleet/+/up")
    cloud.publish("fleet/7/up", b"")
    assert (heard, asked) == (["fleet/7/down"], ["cloud"])
