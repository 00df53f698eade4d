"""The fleet's own broker as an operator meets it: it starts, it says what is wrong, it stops."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from brokers import skip_without, start_broker
from mqtt_fixtures import listening, wait_until

from fleet import broker
from protocol.mqtt.transport import NetworkLoop
from protocol.session.transport import BrokerUnreachable

KINDS = pytest.mark.parametrize("kind", broker.KINDS)


@KINDS
def test_broker_stops_cleanly_on_sigterm(kind: broker.Kind, tmp_path: Path) -> None:
    skip_without(kind)
    port = broker.free_port()
    process = start_broker(kind, port, tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    with pytest.raises(BrokerUnreachable, match=f"127.0.0.1:{port}"):
        broker.wait_ready(broker.HOST, port, 0.1)


@KINDS
def test_broker_starts_again_at_once_on_the_port_of_a_killed_one(kind: broker.Kind, tmp_path: Path) -> None:
    skip_without(kind)
    port = broker.free_port()
    first = start_broker(kind, port, tmp_path)
    with socket.create_connection((broker.HOST, port)):
        first.kill()
        first.wait()
    second = start_broker(kind, port, tmp_path)
    second.kill()
    second.wait()


@KINDS
def test_broker_listens_on_the_loopback_alone(kind: broker.Kind, tmp_path: Path) -> None:
    skip_without(kind)
    port = broker.free_port()
    process = start_broker(kind, port, tmp_path)
    try:
        # The whole 127/8 network is this machine: 127.0.0.2 answers where a broker listens on every address.
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.2", port)) != 0
    finally:
        process.kill()
        process.wait()


@KINDS
def test_port_in_use_is_one_line_and_exit_code_2(kind: broker.Kind, tmp_path: Path) -> None:
    skip_without(kind)
    with socket.create_server((broker.HOST, 0)) as server:
        port = server.getsockname()[1]
        done = subprocess.run(
            broker.broker_command(kind, port, tmp_path),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith(f"broker: port {port} can't be used (Address already in use)")
    assert done.stderr.count("\n") == 1


def test_port_out_of_range_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert broker.main(["--kind", "amqtt", "--port", "70000"]) == 2
    assert capsys.readouterr().err == "broker: port must lie between 1 and 65535, got 70000\n"


def test_unwritable_folder_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    skip_without("mosquitto")
    (tmp_path / "file").write_text("")
    workdir = str(tmp_path / "file" / "folder")
    assert broker.main(["--kind", "mosquitto", "--port", str(broker.free_port()), "--workdir", workdir]) == 2
    error = capsys.readouterr().err
    assert error.startswith("broker: ") and workdir in error and error.count("\n") == 1


def test_choice_of_kind_follows_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mosquitto"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert broker.choose_kind() == "mosquitto" and broker.choose_kind("amqtt") == "amqtt"
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.setattr(broker, "_SYSTEM_FOLDERS", ())
    assert broker.choose_kind() == "amqtt"
    with pytest.raises(ValueError, match="install it or use amqtt"):
        broker.choose_kind("mosquitto")
    monkeypatch.setattr(broker.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match="no broker is installed"):
        broker.choose_kind()
    with pytest.raises(ValueError, match="auto, mosquitto or amqtt, got 'emqx'"):
        broker.choose_kind("emqx")


def test_wait_ready_is_not_taken_in_by_another_server() -> None:
    with (
        socket.create_server((broker.HOST, 0)) as server,
        pytest.raises(BrokerUnreachable, match="no MQTT broker answers"),
    ):
        broker.wait_ready(broker.HOST, server.getsockname()[1], 0.2)


def test_command_runs_this_interpreter() -> None:
    command = broker.broker_command("amqtt", 1234, Path("run"))
    assert command[:3] == [sys.executable, "-m", "fleet.broker"] and "1234" in command


def test_who_publishes_more_than_the_limit_loses_its_connection(tmp_path: Path) -> None:
    skip_without("mosquitto")
    port = broker.free_port()
    process = subprocess.Popen(broker.broker_command("mosquitto", port, tmp_path, payload_bytes=2000))
    try:
        broker.wait_ready(broker.HOST, port, 30)
        with NetworkLoop() as loop:
            client, inbox = listening(broker.broker_url(port), loop, "large", "speaker")
            client.publish("large", bytes(2000))
            assert len(inbox.next().payload) == 2000
            client.publish("large", bytes(1 << 20))
            wait_until(lambda: client.traffic.reconnects > 0 or not client.connected)
            client.close()
    finally:
        process.terminate()
        process.wait()
