"""MQTT sessions against both brokers: what arrives, what survives an outage, what the counters say."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import running_broker, skip_without, start_broker
from mqtt_fixtures import WAIT_S, Inbox, listening, url, wait_until
from wire_proxy import WireProxy

from fleet import broker
from protocol.mqtt.transport import MqttTransport, NetworkLoop
from protocol.session.transport import BrokerUnreachable, Delivery, Will


@pytest.fixture(scope="module", params=broker.KINDS)
def broker_port(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    skip_without(request.param)
    with running_broker(request.param, tmp_path_factory.mktemp("broker")) as port:
        yield port


@pytest.fixture
def loop() -> Iterator[NetworkLoop]:
    with NetworkLoop() as network_loop:
        yield network_loop


@pytest.mark.parametrize("size", [0, 1, 20_000, 3_000_000])
def test_message_of_any_size_arrives_unchanged(broker_port: int, loop: NetworkLoop, size: int) -> None:
    listener, inbox = listening(url(broker_port), loop, f"size{size}/+", f"l{size}")
    talker, _ = listening(url(broker_port), loop, "nothing", f"t{size}")
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
    talker.publish(f"size{size}/a", payload)
    assert inbox.next() == Delivery(f"size{size}/a", payload, retained=False)
    talker.close()
    listener.close()


def test_many_messages_arrive_in_order_and_counters_agree_with_the_wire(
    broker_port: int, loop: NetworkLoop
) -> None:
    count = 300
    with WireProxy(broker_port) as proxy:
        listener, inbox = listening(proxy.url, loop, "order/#", "order-listener")
        talker, _ = listening(proxy.url, loop, "nothing", "order-talker")
        for i in range(count):
            talker.publish(f"order/{i % 7}", i.to_bytes(2, "big") * (1 + 40 * (i % 11)))
        assert [inbox.next().payload[:2] for _ in range(count)] == [
            i.to_bytes(2, "big") for i in range(count)
        ]
        talker.close()
        listener.close()
        up, down = proxy.sums["order-talker", "up"], proxy.sums["order-listener", "down"]
        assert (talker.traffic.sent_packets, talker.traffic.sent_bytes) == (up.packets, up.bytes)
        assert listener.traffic.received_packets == down.packets == count
        assert listener.traffic.received_bytes == down.bytes
        assert talker.traffic.dropped == talker.traffic.reconnects == 0


def test_mqtt_5_session_counts_its_longer_packets(tmp_path: Path, loop: NetworkLoop) -> None:
    skip_without("mosquitto")  # amqtt speaks 3.1.1 only
    with running_broker("mosquitto", tmp_path) as port, WireProxy(port) as proxy:
        listener, inbox = listening(proxy.url + "?version=5", loop, "five", "listener")
        talker, _ = listening(proxy.url + "?version=5", loop, "nothing", "talker")
        for _ in range(100):
            talker.publish("five", b"x" * 500)
        for _ in range(100):
            inbox.next()
        talker.close()
        listener.close()
        assert talker.traffic.sent_bytes == proxy.sums["talker", "up"].bytes
        assert listener.traffic.received_bytes == proxy.sums["listener", "down"].bytes


def test_mqtt_5_session_gets_what_it_missed_while_it_was_away(tmp_path: Path, loop: NetworkLoop) -> None:
    skip_without("mosquitto")
    with running_broker("mosquitto", tmp_path) as port, WireProxy(port) as proxy:
        listener, inbox = listening(proxy.url + "?version=5", loop, "missed", "listener")
        talker, _ = listening(url(port), loop, "nothing", "talker")
        proxy.refuse()
        proxy.cut()
        wait_until(lambda: not listener.connected)
        talker.publish("missed", b"while you were away")
        wait_until(lambda: talker.traffic.sent_packets == 1)
        proxy.accept()
        assert inbox.next().payload == b"while you were away"
        assert listener.packet_limit_bytes == 268435455
        listener.close()
        again, inbox = listening(proxy.url + "?version=5", loop, "missed", "listener")
        talker.publish("missed", b"now")
        assert inbox.next().payload == b"now"
        for client in (again, talker):
            client.close()


def test_acknowledgement_comes_when_the_broker_has_the_message(broker_port: int, loop: NetworkLoop) -> None:
    acknowledged = threading.Event()
    with WireProxy(broker_port) as proxy:
        client, _ = listening(proxy.url, loop, "nothing", "acknowledged")
        proxy.refuse()
        proxy.cut()
        wait_until(lambda: not client.connected)
        client.publish("acknowledged", b"1", on_acknowledged=acknowledged.set)
        assert not acknowledged.wait(0.3)
        proxy.accept()
        assert acknowledged.wait(WAIT_S)
        client.close()


def test_retained_message_and_will_reach_a_later_subscriber(broker_port: int, loop: NetworkLoop) -> None:
    with WireProxy(broker_port) as proxy, NetworkLoop() as other_loop:
        will = Will("will/vehicle", b"offline")
        vehicle = MqttTransport(
            proxy.url,
            "will-vehicle",
            loop=other_loop,
            will=will,
            on_connect=lambda: vehicle.publish(will.topic, b"online", retain=True),
        )
        vehicle.connect(WAIT_S)
        listener, inbox = listening(url(broker_port), loop, "will/+", "will-listener")
        birth = inbox.next()
        assert birth.payload == b"online"
        proxy.refuse()
        assert proxy.cut("will-vehicle") == 1
        while (delivery := inbox.next()).payload != b"offline":
            assert delivery.payload == b"online"
        late, late_inbox = listening(url(broker_port), loop, "will/+", "will-late")
        assert late_inbox.next() == Delivery("will/vehicle", b"offline", retained=True)
        proxy.accept()
        assert inbox.next().payload == b"online"
        vehicle.close()
        listener.close()
        late.close()


def test_goodbye_does_not_leave_a_will(broker_port: int, loop: NetworkLoop) -> None:
    listener, inbox = listening(url(broker_port), loop, "bye/+", "bye-listener")
    vehicle = MqttTransport(url(broker_port), "bye", loop=loop, will=Will("bye/will", b"offline"))
    # amqtt sends the will of a client that leaves before it has subscribed to or published anything.
    vehicle.subscribe("bye/down", Inbox())
    vehicle.connect(WAIT_S)
    vehicle.close()
    listener.publish("bye/marker", b"")
    assert inbox.next().topic == "bye/marker" and inbox.empty
    listener.close()


def test_cut_session_comes_back_with_its_subscriptions_and_what_waited(
    broker_port: int, loop: NetworkLoop
) -> None:
    births = threading.Semaphore(0)
    with WireProxy(broker_port) as proxy:
        watcher, seen = listening(url(broker_port), loop, "cut/up", "cut-watcher")
        inbox = Inbox()
        client = MqttTransport(proxy.url, "cut-client", loop=loop, on_connect=births.release)
        client.subscribe("cut/down", inbox)
        client.connect(WAIT_S)
        assert births.acquire(timeout=WAIT_S) and client.seconds_disconnected() == 0
        proxy.refuse()
        proxy.cut()
        wait_until(lambda: not client.connected)
        assert client.seconds_disconnected() > 0
        for i in range(150):
            client.publish("cut/up", bytes([i]))
        client.publish("cut/up", b"lost", qos=0)
        proxy.accept()
        assert births.acquire(timeout=WAIT_S)
        assert [seen.next().payload for _ in range(150)] == [bytes([i]) for i in range(150)]
        watcher.publish("cut/down", b"still there")
        assert inbox.next().payload == b"still there"
        assert client.traffic.reconnects == 1 and client.traffic.dropped == 1
        client.close()
        watcher.close()


def test_repeated_cuts_lose_no_message_and_resends_are_counted(broker_port: int, loop: NetworkLoop) -> None:
    count = 400
    with WireProxy(broker_port) as proxy:
        watcher, seen = listening(url(broker_port), loop, "cuts/up", "cuts-watcher")
        client = MqttTransport(proxy.url, "cuts-client", loop=loop)
        client.connect(WAIT_S)
        for i in range(count):
            client.publish("cuts/up", i.to_bytes(2, "big") * 2000)
            if i % 100 == 50:
                proxy.cut()
        received: list[int] = []
        while len(set(received)) < count:
            received.append(int.from_bytes(seen.next().payload[:2], "big"))
        # QoS 1: nothing is lost, something may come twice.
        assert set(received) == set(range(count))
        client.close()
        passed = proxy.sums["cuts-client", "up"].packets
        assert count <= passed <= client.traffic.sent_packets
        watcher.close()


def test_broker_killed_and_restarted_is_found_again(tmp_path: Path, loop: NetworkLoop) -> None:
    port = broker.free_port()
    kind = broker.choose_kind()
    process = start_broker(kind, port, tmp_path)
    try:
        client, inbox = listening(url(port), loop, "again", "client")
        process.kill()
        process.wait()
        wait_until(lambda: not client.connected)
        client.publish("again", b"published without a broker")
        process = start_broker(kind, port, tmp_path)
        assert inbox.next().payload == b"published without a broker"
        client.close()
    finally:
        process.kill()
        process.wait()


def test_silent_broker_is_noticed_by_keepalive(tmp_path: Path, loop: NetworkLoop) -> None:
    port = broker.free_port()
    process = start_broker(broker.choose_kind(), port, tmp_path)
    try:
        inbox = Inbox()
        client = MqttTransport(url(port), "client", loop=loop, keepalive_s=1)
        client.subscribe("silent", inbox)
        client.connect(WAIT_S)
        process.send_signal(signal.SIGSTOP)  # as a cable pulled: the connection stays, nothing comes
        client.publish("silent", b"published into the void")
        wait_until(lambda: not client.connected)
        process.send_signal(signal.SIGCONT)
        assert inbox.next().payload == b"published into the void"
        assert client.traffic.reconnects >= 1
        client.close()
    finally:
        process.kill()
        process.wait()


def test_exception_in_a_handler_is_counted_and_the_session_goes_on(
    broker_port: int, loop: NetworkLoop, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = Inbox()

    def fail_once(delivery: Delivery) -> None:
        if delivery.payload == b"bad":
            raise RuntimeError("a handler's mistake")
        inbox(delivery)

    client = MqttTransport(url(broker_port), "broken-handler", loop=loop)
    client.subscribe("broken", fail_once)
    client.connect(WAIT_S)
    client.publish("broken", b"bad")
    client.publish("broken", b"good")
    assert inbox.next().payload == b"good"
    assert client.traffic.handler_errors == 1 and "a handler's mistake" in caplog.text
    assert client.connected
    client.close()


def test_handler_may_publish(broker_port: int, loop: NetworkLoop) -> None:
    echo = MqttTransport(url(broker_port), "echo", loop=loop)
    echo.subscribe("echo/in", lambda delivery: echo.publish("echo/out", delivery.payload))
    echo.connect(WAIT_S)
    client, inbox = listening(url(broker_port), loop, "echo/out", "echo-client")
    for i in range(20):
        client.publish("echo/in", bytes([i]))
    assert [inbox.next().payload for _ in range(20)] == [bytes([i]) for i in range(20)]
    client.close()
    echo.close()


def test_subscription_made_while_connected_works(broker_port: int, loop: NetworkLoop) -> None:
    client, _ = listening(url(broker_port), loop, "first", "late-subscriber")
    inbox = Inbox()
    client.publish("second", b"kept", retain=True)
    client.subscribe("second", inbox)
    assert inbox.next().payload == b"kept"
    client.publish("second", b"", retain=True)
    client.close()


def test_queue_is_bounded_and_drops_are_counted(loop: NetworkLoop) -> None:
    client = MqttTransport(url(broker.free_port()), "full", loop=loop, max_queued=10)
    for _ in range(25):
        client.publish("a", b"")
    assert client.traffic.dropped == 15 and client.traffic.sent_packets == 0
    client.close()


def test_a_hundred_clients_share_one_thread(broker_port: int, loop: NetworkLoop) -> None:
    threads_before = threading.active_count()
    inbox = Inbox()
    clients = [MqttTransport(url(broker_port), f"many-{i}", loop=loop) for i in range(100)]
    for i, client in enumerate(clients):
        client.subscribe(f"many/{i}", inbox)
        client.connect(WAIT_S)
    for i, client in enumerate(clients):
        client.publish(f"many/{(i + 1) % 100}", i.to_bytes(1, "big"))
    assert {inbox.next().payload for _ in clients} == {i.to_bytes(1, "big") for i in range(100)}
    assert threading.active_count() - threads_before <= 5  # the loop and its helpers
    for client in clients:
        client.close()


def test_unreachable_broker_is_one_clear_line(loop: NetworkLoop) -> None:
    port = broker.free_port()
    client = MqttTransport(f"mqtt://me:secret@127.0.0.1:{port}", "nobody", loop=loop)
    with pytest.raises(BrokerUnreachable) as caught:
        client.connect(0.3)
    text = str(caught.value)
    assert f"mqtt://me@127.0.0.1:{port}" in text and "connection refused" in text and "start a broker" in text
    assert "secret" not in text and "\n" not in text
    client.close()


def test_server_that_speaks_no_mqtt_is_unreachable(loop: NetworkLoop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = MqttTransport(url(server.getsockname()[1]), "lost", loop=loop)
        answers = threading.Thread(target=_answer_with_noise, args=(server,), daemon=True)
        answers.start()
        with pytest.raises(BrokerUnreachable, match="no MQTT session"):
            client.connect(1.0)
        client.close()


def _answer_with_noise(server: socket.socket) -> None:
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        client.sendall(b"\x20\x02\xff\xffHTTP/1.1 400 Bad Request\r\n\r\n" * 3)
        client.close()
