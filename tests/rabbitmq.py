"""RabbitMQ with its MQTT plugin for tests: a node of its own, whose files are all in one folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet import broker

_PROGRAMS = Path("/usr/lib/rabbitmq/lib")
_READY_S = 60
_STARTED = b"completed with"
_SETTINGS = """\
listeners.tcp = none
mqtt.listeners.tcp.default = 127.0.0.1:{port}
mqtt.tcp_listen_options.nodelay = true
mqtt.prefetch = 100
"""


@contextlib.contextmanager
def running_rabbitmq(folder: Path) -> Iterator[int]:
    """A node for the time of the block; gives its MQTT port."""
    program = next(iter(sorted(_PROGRAMS.glob("rabbitmq_server-*/sbin/rabbitmq-server"))), None)
    if program is None or shutil.which("erl") is None:
        pytest.skip("RabbitMQ is not installed (Debian: rabbitmq-server)")
    port, names, talk = broker.free_port(), broker.free_port(), broker.free_port()
    (folder / "rabbitmq.conf").write_text(_SETTINGS.format(port=port))
    (folder / "plugins").write_text("[rabbitmq_mqtt].")
    environment = {
        **os.environ,
        "HOME": str(folder),
        "RABBITMQ_NODENAME": "test@localhost",
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_DIST_PORT": str(talk),
        "ERL_EPMD_PORT": str(names),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        # One scheduler: beside what is tested it has no need of all cores, nor to spin on them.
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
    }
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [program], cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        # Nobody knocks before it listens: whoever connects to a free port again and again meets itself there,
        # and then holds it.
        deadline = time.monotonic() + _READY_S
        while _STARTED not in (folder / "output").read_bytes():
            if time.monotonic() > deadline:
                pytest.skip(f"this machine is too busy: RabbitMQ has not started within {_READY_S} s")
            time.sleep(0.1)
        broker.wait_ready(broker.HOST, port, 10)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        subprocess.run(["epmd", "-port", str(names), "-kill"], capture_output=True, check=False)
