"""A broker that a fleet can't use: said in one line, within seconds, before anything is started."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import configured_mosquitto, make_certificate, running_broker

from fleet import broker
from fleet.errors import OperatorError
from fleet.run.reach import check_reach
from protocol.errors import Mistake
from protocol.session.transport import BrokerUnreachable

PATIENCE_S = 1.0


def _refusal(url: str) -> str:
    began = time.monotonic()
    with pytest.raises(Mistake) as refusal:
        check_reach(url, "demo", PATIENCE_S)
    assert time.monotonic() - began < 15
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize("kind", ["amqtt", "mosquitto"])
def test_broker_that_does_is_found_out_quickly(kind: broker.Kind, tmp_path: Path) -> None:
    with running_broker(kind, tmp_path) as port:
        check_reach(broker.broker_url(port), "demo", PATIENCE_S)


def test_wrong_port_is_named() -> None:
    assert "connection refused" in _refusal(broker.broker_url(broker.free_port()))


@pytest.mark.parametrize(
    ("scheme", "speaks"), [("mqtts", "TLS"), ("ws", "WebSocket"), ("wss", "WebSocket over TLS")]
)
def test_wrong_scheme_is_named(scheme: str, speaks: str, tmp_path: Path) -> None:
    with running_broker("amqtt", tmp_path) as port:
        line = _refusal(f"{scheme}://127.0.0.1:{port}")
    assert f"no MQTT session with {scheme}://127.0.0.1:{port}" in line
    assert f"does it speak {speaks} on that port" in line


def test_missing_client_certificate_is_named(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    files = f"cafile {tmp_path}/broker.pem\ncertfile {tmp_path}/broker.pem\nkeyfile {tmp_path}/broker.key\n"
    with configured_mosquitto(tmp_path, f"{files}require_certificate true\nallow_anonymous true\n") as port:
        line = _refusal(f"mqtts://localhost:{port}?ca={tmp_path}/broker.pem")
    assert "want no client certificate (?cert=FILE)?" in line, line


def test_access_list_that_drops_reads_is_named(tmp_path: Path) -> None:
    (tmp_path / "acl").write_text("topic write #\n")
    options = f"allow_anonymous true\nacl_file {tmp_path}/acl\n"
    with configured_mosquitto(tmp_path, options) as port, pytest.raises(OperatorError) as refusal:
        check_reach(broker.broker_url(port), "demo", PATIENCE_S)
    assert "takes messages and does not hand them on (up, down, status)" in str(refusal.value)
    assert "let this user write and read blackfleet/v1/demo/#" in str(refusal.value)


@contextlib.contextmanager
def refusing_subscriptions() -> Iterator[int]:
    """What some brokers do with an access list, and none that runs here: it answers SUBSCRIBE with 0x80."""

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client:
                    client.recv(1024)
                    client.sendall(b"\x20\x02\x00\x00")
                    packet = client.recv(1024)
                    count = packet.count(b"blackfleet/")
                    client.sendall(bytes([0x90, 2 + count]) + packet[2:4] + b"\x80" * count)
                    client.recv(1024)

    with socket.create_server((broker.HOST, 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1]


def test_subscription_that_is_refused_is_named() -> None:
    with refusing_subscriptions() as port, pytest.raises(BrokerUnreachable) as refusal:
        check_reach(broker.broker_url(port), "demo", PATIENCE_S)
    assert "it refuses the subscription to blackfleet/v1/demo/" in str(refusal.value)
    assert "let this user read that topic" in str(refusal.value)
