"""MQTT sessions against both brokers: what arrives, what survives an outage, what the counters say."""

from __future__ import annotations

import contextlib
import getpass
import os
import queue
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import running_broker, skip_without, start_broker
from wire_proxy import WireProxy

from fleet import broker
from protocol.session.broker_url import parse_broker_url
from protocol.session.mqtt import MqttTransport, NetworkLoop
from protocol.session.transport import BrokerUnreachable, Delivery, Will

WAIT_S = 20


@pytest.fixture(scope="module", params=broker.KINDS)
def broker_port(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    skip_without(request.param)
    with running_broker(request.param, tmp_path_factory.mktemp("broker")) as port:
        yield port


@pytest.fixture
def loop() -> Iterator[NetworkLoop]:
    with NetworkLoop() as network_loop:
        yield network_loop


class Inbox:
    """A handler that keeps what it gets."""

    def __init__(self) -> None:
        self._deliveries: queue.Queue[Delivery] = queue.Queue()

    def __call__(self, delivery: Delivery) -> None:
        self._deliveries.put(delivery)

    def next(self) -> Delivery:
        return self._deliveries.get(timeout=WAIT_S)

    @property
    def empty(self) -> bool:
        return self._deliveries.empty()


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def url(port: int, options: str = "") -> str:
    return broker.broker_url(port) + options


def listening(
    address: str, loop: NetworkLoop, topic_filter: str, client_id: str
) -> tuple[MqttTransport, Inbox]:
    client, inbox = MqttTransport(address, client_id, loop=loop), Inbox()
    client.subscribe(topic_filter, inbox)
    client.connect(WAIT_S)
    return client, inbox


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


def test_refused_login_ends_the_waiting_at_once(tmp_path: Path, loop: NetworkLoop) -> None:
    with configured_mosquitto(tmp_path, "allow_anonymous false\n") as port:
        client = MqttTransport(f"mqtt://me:wrong@127.0.0.1:{port}", "refused", loop=loop)
        with pytest.raises(BrokerUnreachable, match="refused: not authorized"):
            client.connect(600)
        client.close()


def test_websocket_carries_messages_larger_than_the_socket_takes_at_once(
    tmp_path: Path, loop: NetworkLoop
) -> None:
    both = "allow_anonymous true\nlistener {} 127.0.0.1\nallow_anonymous true\nprotocol websockets\n"
    ws_port = broker.free_port()
    with configured_mosquitto(tmp_path, both.format(ws_port)) as port:
        # mosquitto 2.0 takes seconds to deliver more than a few KB over WebSocket, so the large way is up.
        listener, inbox = listening(url(port), loop, "ws/up", "ws-listener")
        talker, answers = listening(f"ws://127.0.0.1:{ws_port}", loop, "ws/down", "ws-talker")
        payloads = [bytes([i]) * size for i, size in enumerate((10, 5_000_000, 20, 3_000_000, 30, 100_000))]
        for payload in payloads:
            talker.publish("ws/up", payload)
        for payload in payloads:
            assert inbox.next().payload == payload
        listener.publish("ws/down", b"answer")
        assert answers.next().payload == b"answer"
        assert talker.traffic.reconnects == 0
        talker.close()
        listener.close()


def test_tls_session_checks_the_brokers_certificate(tmp_path: Path, loop: NetworkLoop) -> None:
    make_certificate(tmp_path)
    files = f"certfile {tmp_path}/broker.pem\nkeyfile {tmp_path}/broker.key\n"
    with configured_mosquitto(tmp_path, files + "allow_anonymous true\n") as port:
        address = f"mqtts://localhost:{port}"
        stranger = MqttTransport(address, "stranger", loop=loop)
        with pytest.raises(BrokerUnreachable, match=r"certificate.*\?ca=FILE"):
            stranger.connect(600)
        stranger.close()
        for trusting in (f"{address}?ca={tmp_path}/broker.pem", f"{address}?insecure=1"):
            client, inbox = listening(trusting, loop, "tls", "tls-client")
            for size in (10, 2_000_000):
                client.publish("tls", bytes(size))
                assert inbox.next().payload == bytes(size)
            client.close()


def make_certificate(folder: Path) -> None:
    """A certificate for localhost that is its own authority: `broker.pem` and `broker.key`."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", "broker.key", "-out", "broker.pem"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


@contextlib.contextmanager
def configured_mosquitto(folder: Path, listener_options: str) -> Iterator[int]:
    """mosquitto with a listener of its own kind; gives its port."""
    skip_without("mosquitto")
    port = broker.free_port()
    config = folder / "listener.conf"
    # Started by root, mosquitto would become another user, who can't read the files of the test.
    general = f"user {getpass.getuser()}\nlog_dest none\n"
    config.write_text(f"per_listener_settings true\n{general}listener {port} 127.0.0.1\n{listener_options}")
    path = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"
    process = subprocess.Popen(["mosquitto", "-c", str(config)], env={**os.environ, "PATH": path})
    try:
        wait_until(lambda: process.poll() is not None or _listens(port))
        if process.poll() is not None:
            pytest.skip("this mosquitto was built without what the test needs")
        yield port
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((broker.HOST, port)) == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("localhost:1883", "must start with mqtt://"),
        ("http://localhost", "must start with mqtt://"),
        ("mqtt://", "needs a host"),
        ("mqtt://host:0", "port from 1 to 65535"),
        ("mqtt://host:99999", "port from 1 to 65535"),
        ("mqtt://host:port", "port from 1 to 65535"),
        ("mqtt://host?cafile=x", "unknown broker URL option 'cafile'"),
        ("mqtt://host?version=4", "must be 3.1.1 or 5, got '4'"),
        ("mqtt://host?ca=x", "need mqtts:// or wss://"),
    ],
)
def test_bad_broker_url_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_broker_url(text)


def test_broker_url_parts_and_defaults() -> None:
    parsed = parse_broker_url("wss://us%40er:p%2Fw@[::1]:444/broker?ca=a.pem&cert=b.pem&key=c.pem&insecure")
    assert (parsed.host, parsed.port, parsed.path) == ("::1", 444, "/broker")
    assert (parsed.username, parsed.password) == ("us@er", "p/w")
    assert (parsed.ca, parsed.cert, parsed.key) == (Path("a.pem"), Path("b.pem"), Path("c.pem"))
    assert parsed.insecure and parsed.tls and parsed.websocket
    assert str(parsed) == "wss://us@er@[::1]:444/broker"
    ports = [parse_broker_url(f"{scheme}://h").port for scheme in ("mqtt", "mqtts", "ws", "wss")]
    assert ports == [1883, 8883, 80, 443]


def test_missing_certificate_file_is_one_clear_line(loop: NetworkLoop) -> None:
    with pytest.raises(ValueError, match=r"can't be used \(missing.pem\)"):
        MqttTransport("mqtts://host?ca=missing.pem", "a", loop=loop)
