"""A whole fleet inside this process, on the in-memory bus: the same vehicles and cloud, no broker.

For `--broker memory`, benchmarks, and tests whose subject is not the network.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from cloud_server.config import CloudConfig
from cloud_server.run.service import serve
from edge_client.host import Host, HostConfig
from protocol.session.memory import MemoryBus
from protocol.session.transport import Transport, Will


def run_in_process(
    config: CloudConfig,
    hosts: Sequence[HostConfig],
    run_folder: Path,
    *,
    bus: MemoryBus | None = None,
    resume: bool = False,
    stop: threading.Event | None = None,
) -> None:
    """Run the cloud in this thread and the hosts in others; `result.json` is in `run_folder` afterwards.

    `stop` ends the run early, as it is set anyway when the run is over.

    Raises:
        Exception: what ended the cloud, or else a host.
    """
    bus = bus or MemoryBus()
    stop = stop or threading.Event()
    failures: list[Exception] = []

    def connect(client_id: str, will: Will, on_connect: Callable[[], None]) -> Transport:
        return bus.client(client_id, will=will, on_connect=on_connect)

    def run_host(host: Host) -> None:
        try:
            host.run()
        except Exception as error:  # whatever ended it is raised in the caller's thread, if it ends the run
            if config.patience.on_failure != "continue":
                failures.append(error)
                stop.set()

    threads = [
        threading.Thread(target=run_host, args=(Host(host, connect, stop),), name=f"host-{number}")
        for number, host in enumerate(hosts)
    ]
    for thread in threads:
        thread.start()
    try:
        serve(config, connect, run_folder=run_folder, resume=resume, stop=stop)
    except Exception as error:
        raise (failures[0] if failures else error) from None
    finally:
        stop.set()
        for thread in threads:
            thread.join()
