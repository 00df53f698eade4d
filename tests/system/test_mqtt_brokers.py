"""MQTT sessions with brokers that ask for more: logins, certificates, WebSockets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import configured_mosquitto, make_certificate
from mqtt_fixtures import listening, url

from fleet import broker
from protocol.mqtt.strangers import lets_strangers_speak, warning_of_strangers
from protocol.mqtt.transport import MqttTransport, NetworkLoop
from protocol.session.transport import BrokerUnreachable


@pytest.fixture
def loop() -> Iterator[NetworkLoop]:
    with NetworkLoop() as network_loop:
        yield network_loop


def test_refused_login_ends_the_waiting_at_once(tmp_path: Path, loop: NetworkLoop) -> None:
    with configured_mosquitto(tmp_path, "allow_anonymous false\n") as port:
        client = MqttTransport(f"mqtt://me:wrong@127.0.0.1:{port}", "refused", loop=loop)
        with pytest.raises(BrokerUnreachable, match="refused: not authorized"):
            client.connect(600)
        client.close()


def test_it_is_noticed_whether_a_broker_lets_strangers_speak(tmp_path: Path, loop: NetworkLoop) -> None:
    (tmp_path / "acl").write_text("user cloud\ntopic readwrite blackfleet/#\n")
    for options, lets in (
        ("allow_anonymous true\n", True),
        ("allow_anonymous false\n", False),
        (f"allow_anonymous true\nacl_file {tmp_path}/acl\n", False),
    ):
        with configured_mosquitto(tmp_path, options) as port:
            address = f"mqtt://cloud:secret@127.0.0.1:{port}"
            assert lets_strangers_speak(address, "demo", loop) is lets, options
            assert warning_of_strangers(address, "demo", loop) == "", "only this machine's users reach it"


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


def test_missing_certificate_file_is_one_clear_line(loop: NetworkLoop) -> None:
    with pytest.raises(ValueError, match=r"can't be used \(missing.pem\)"):
        MqttTransport("mqtts://host?ca=missing.pem", "a", loop=loop)
