"""Real brokers for tests: each runs as a process of its own, as in a fleet."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mqtt_fixtures import wait_until

from fleet import broker


def skip_without(kind: str) -> None:
    """Skip the running test where `kind` of broker can't run."""
    try:
        broker.choose_kind(kind)
    except ValueError as exc:
        pytest.skip(str(exc))


def start_broker(kind: broker.Kind, port: int, workdir: Path) -> subprocess.Popen[bytes]:
    """A broker process that answers."""
    process = subprocess.Popen(broker.broker_command(kind, port, workdir))
    try:
        broker.wait_ready(broker.HOST, port, 30)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process


@contextlib.contextmanager
def running_broker(kind: broker.Kind, workdir: Path) -> Iterator[int]:
    """Run a broker for the time of the block; gives its port."""
    port = broker.free_port()
    process = start_broker(kind, port, workdir)
    try:
        yield port
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


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
