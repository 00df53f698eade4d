"""A broker of the fleet's own, on the loopback interface: mosquitto where it is installed, else amqtt.

`python -m fleet.broker --port N` runs it in the foreground until SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Literal

from protocol.errors import MENDABLE, MISTAKE_CODE, SettingError
from protocol.session.transport import BrokerUnreachable
from protocol.showing import show_anything

Kind = Literal["mosquitto", "amqtt"]
KINDS: tuple[Kind, ...] = ("mosquitto", "amqtt")
OWN_BROKERS = ("auto", *KINDS)
"""What `broker` in a scenario may name to have one started."""
MEMORY_BUS = "memory"
"""What `broker` in a scenario names to have the whole fleet in the launcher's process, without a network."""
HOST = "127.0.0.1"

_SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")
_CONNECT_PACKET = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x05\x00\x00"  # 3.1.1, clean session, no client id
_ACCEPTED = b"\x20\x02\x00\x00"

MOST_PACKET_BYTES = 268_435_455
"""What MQTT allows."""
_HEADERS_BYTES = 1024
"""At most, of a packet: topic and properties."""

_MOSQUITTO_CONFIG = """\
listener {port} {host}
allow_anonymous true
set_tcp_nodelay true
# Started by root, mosquitto would change its user, whereupon Linux no longer ends it with its launcher.
user root
persistence false
# Queues without a limit: mosquitto drops silently what exceeds one. Clean sessions end with their client.
max_queued_messages 0
max_inflight_messages 0
max_packet_size {packet_bytes}
sys_interval 0
connection_messages false
log_dest stderr
log_type error
log_type warning
"""


def choose_kind(wanted: str = "auto") -> Kind:
    """mosquitto when it is there, else amqtt; or `wanted`, if that can run here.

    Raises SettingError for an unknown kind or one that is not installed.
    """
    if wanted not in ("auto", *KINDS):
        raise SettingError(f"broker kind must be auto, {' or '.join(KINDS)}, got {wanted!r}")
    if wanted in ("auto", "mosquitto") and find_mosquitto() is not None:
        return "mosquitto"
    if wanted == "mosquitto":
        raise SettingError("mosquitto is neither on PATH nor in /usr/sbin: install it or use amqtt")
    if importlib.util.find_spec("amqtt") is None:
        raise SettingError(
            "no broker is installed: install mosquitto, or amqtt with pip, or give a broker URL"
        )
    return "amqtt"


def free_port() -> int:
    """A TCP port that is free on the loopback interface now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def broker_command(kind: Kind, port: int, workdir: Path, *, payload_bytes: int | None = None) -> list[str]:
    """The command line that runs a broker; it keeps its files in `workdir`.

    Whoever publishes more than `payload_bytes` loses its connection; amqtt knows no such limit.
    """
    command = [sys.executable, "-m", "fleet.broker"]
    limit = [] if payload_bytes is None else ["--payload-bytes", str(payload_bytes)]
    return [*command, "--kind", kind, "--port", str(port), "--workdir", str(workdir), *limit]


def broker_url(port: int) -> str:
    """What the clients of an own broker connect to."""
    return f"mqtt://{HOST}:{port}"


def wait_ready(host: str, port: int, timeout_s: float) -> None:
    """Return as soon as a broker lets an anonymous client in.

    Raises `BrokerUnreachable` after `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        left_s = deadline - time.monotonic()
        with (
            contextlib.suppress(OSError),
            socket.create_connection((host, port), max(left_s, 0.05)) as client,
        ):
            client.settimeout(max(left_s, 0.05))
            client.sendall(_CONNECT_PACKET)
            if client.recv(len(_ACCEPTED)) == _ACCEPTED:
                return
        if time.monotonic() >= deadline:
            raise BrokerUnreachable(f"no MQTT broker answers on {host}:{port} within {timeout_s:g} s")
        time.sleep(0.02)


def main(arguments: list[str] | None = None) -> int:
    """Run a broker until SIGTERM; 2 for what the user got wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m fleet.broker", description="Run a broker on the loopback."
    )
    parser.add_argument("--kind", default="auto", choices=("auto", *KINDS))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workdir", type=Path, default=Path(), help="folder for the broker's files")
    parser.add_argument(
        "--payload-bytes",
        type=int,
        default=MOST_PACKET_BYTES - _HEADERS_BYTES,
        help="the largest that a client may publish (mosquitto); default: what MQTT allows",
    )
    options = parser.parse_args(arguments)
    show_anything()
    try:
        kind = choose_kind(options.kind)
        _check_port(options.port)
        if kind == "mosquitto":
            _become_mosquitto(options.port, options.workdir, options.payload_bytes + _HEADERS_BYTES)
        _run_amqtt(options.port)
    except MENDABLE as exc:
        print(f"broker: {exc}", file=sys.stderr)
        return MISTAKE_CODE
    return 0


def find_mosquitto() -> str | None:
    """The program, where it is installed."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path=os.pathsep.join(_SYSTEM_FOLDERS))


def check_port_number(port: int) -> None:
    """Raise SettingError where `port` is no TCP port."""
    if not 0 < port < 65536:
        raise SettingError(f"port must lie between 1 and 65535, got {port}")


def _check_port(port: int) -> None:
    check_port_number(port)
    with socket.socket() as probe:
        # As the brokers do: connections of an earlier broker that linger must not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as exc:
            raise OSError(
                f"port {port} can't be used ({exc.strerror}): stop what holds it or give another"
            ) from exc


def _become_mosquitto(port: int, workdir: Path, packet_bytes: int) -> None:
    program = find_mosquitto()
    assert program is not None
    workdir.mkdir(parents=True, exist_ok=True)
    config = workdir / f"mosquitto-{port}.conf"
    config.write_text(_MOSQUITTO_CONFIG.format(port=port, host=HOST, packet_bytes=packet_bytes))
    # In place of this process, so that whoever started it supervises the broker itself.
    os.execv(program, [program, "-c", str(config)])


def _run_amqtt(port: int) -> None:
    import asyncio

    from amqtt.broker import Broker, BrokerConfig

    logging.basicConfig(level=logging.ERROR)
    config = BrokerConfig.from_dict(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"{HOST}:{port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
    )

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        broker = Broker(config)
        await broker.start()
        await stop.wait()
        await broker.shutdown()

    asyncio.run(run())


if __name__ == "__main__":
    sys.exit(main())
