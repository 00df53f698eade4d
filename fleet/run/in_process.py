"""A whole fleet inside this process, on the in-memory bus: the same vehicles and cloud, no broker.

For `--broker memory`, benchmarks, and tests whose subject is not the network.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from cloud_server.config import CloudConfig
from cloud_server.run.service import serve
from edge_client.crew import MOST_WORKERS
from edge_client.host import Host, HostConfig
from fleet.simulation.world import World, host_name
from protocol.session.clock import REAL_CLOCK, Clock
from protocol.session.memory import MemoryBus
from protocol.session.topics import CLOUD_ID
from protocol.session.transport import Transport, Will


def run_in_process(
    config: CloudConfig,
    hosts: Sequence[HostConfig],
    run_folder: Path,
    *,
    bus: MemoryBus | None = None,
    resume: bool = False,
    stop: threading.Event | None = None,
    world: World | None = None,
) -> None:
    """Run the cloud in this thread and the hosts in others; `result.json` is in `run_folder` afterwards.

    `world` simulates links, devices and time.

    `stop` ends the run early, as it is set anyway when the run is over.

    Raises:
        Exception: what ended the cloud, or else a host.
    """
    clock: Clock = REAL_CLOCK
    if world is not None:
        clock = world.clock
        # Nobody looks on at a bus in memory, and what is told by the machine's time is no part of the run.
        config = msgspec.structs.replace(config, public_events=False)
    bus = bus or MemoryBus()
    stop = stop or threading.Event()
    failures: list[Exception] = []

    def connect(client_id: str, will: Will, on_connect: Callable[[], None]) -> Transport:
        if world is not None:
            return world.connect(client_id, will, on_connect)
        return bus.client(client_id, will=will, on_connect=on_connect)

    def run_host(host: Host, name: str) -> None:
        try:
            with clock.participant(name):
                host.run()
        except Exception as error:  # whatever ended it is raised in the caller's thread, if it ends the run
            if not config.patience.goes_on:
                failures.append(error)
                stop.set()

    def most_workers(host: HostConfig) -> int:
        # Each simulated vehicle has a computer of its own.
        return MOST_WORKERS if world is None else max(MOST_WORKERS, len(host.vehicles))

    threads = [
        threading.Thread(
            target=run_host,
            args=(
                Host(host, connect, stop, clock=clock, most_workers=most_workers(host)),
                host_name(number),
            ),
            name=host_name(number),
        )
        for number, host in enumerate(hosts)
    ]
    for thread in threads:
        thread.start()
    try:
        with clock.participant(CLOUD_ID), clock.working(CLOUD_ID):
            serve(
                config,
                connect,
                run_folder=run_folder,
                resume=resume,
                stop=stop,
                clock=clock,
                simulated=world,
            )
    except Exception as error:
        raise (failures[0] if failures else error) from None
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        if world is not None:
            world.close()
