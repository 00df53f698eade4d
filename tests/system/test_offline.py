"""A real broker is killed in the middle of a turn: its vehicles go on, and lose nothing, even if they die."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import pkgutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from brokers import skip_without, start_broker
from federated_fixtures import FederatedFleet
from fleet_fixtures import CARS, TinyFleet, World
from mqtt_fixtures import url, wait_until

from cloud_server.run.service import serve
from edge_client.conversation import Stopped
from edge_client.host import Host
from fleet import broker
from fleet.run.in_process import run_in_process
from protocol.mqtt.connect import connector
from protocol.mqtt.transport import NetworkLoop
from protocol.plans.local_loss import LocalLossPlan

pytestmark = pytest.mark.timeout(120)


EPOCHS = 4


@dataclasses.dataclass(frozen=True)
class Way:
    """A way of learning in which vehicles work by themselves."""

    fleet: Callable[[World, Path], TinyFleet]
    gate: str
    """What does that work: it stands still until the broker is dead."""
    made: tuple[str, int]
    """Files, and how many, that a vehicle then has in its spool."""
    dies: bool
    """Whether its vehicles die, too."""
    says: str
    """What they say when they take it up."""
    last_epoch: int | None = None
    """The first life ends before it."""


def by_head(algorithm: str) -> Callable[[World, Path], TinyFleet]:
    local = LocalLossPlan(warm_up_epochs=EPOCHS, epochs=2, weight_power=0.5)
    return lambda world, folder: TinyFleet(
        world, folder, algorithm=algorithm, local_loss=local, parallel_turns=2
    )


EPOCH = "edge_client.learners.local_loss.Training.epoch"
WAYS = {
    "blackfleet": Way(
        by_head("blackfleet"), EPOCH, ("*.kept", 3), True, f"after {EPOCHS + 2} of {EPOCHS + 2}"
    ),
    "in its midst": Way(by_head("blackfleet"), EPOCH, ("*.kept", 1), True, f"after 1 of {EPOCHS + 2}", 2),
    "cse-fsl": Way(by_head("cse-fsl"), EPOCH, ("*.waiting", 1), False, "turn 1 done"),
    "fedavg": Way(
        FederatedFleet,
        "edge_client.learners.federated._train",
        ("*.kept", 1),
        True,
        "the training that it had done is there",
    ),
}


def pieces(fleet: TinyFleet, car: str, pattern: str) -> int:
    return len(list((fleet.state_folder(car) / "spool").glob(pattern)))


@contextlib.contextmanager
def vehicles_of(fleet: TinyFleet, address: str, loop: NetworkLoop) -> Iterator[None]:
    """Their process; what is left of it at the end dies."""
    stop = threading.Event()

    def live() -> None:
        with contextlib.suppress(Stopped):
            Host(fleet.host(), connector(address, loop), stop).run()

    thread = threading.Thread(target=live)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_broker_and_vehicles_that_die_in_a_turn_change_nothing(
    way: Way,
    tiny_world: World,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    skip_without("mosquitto")
    caplog.set_level(logging.INFO)
    calm, fleet = (way.fleet(tiny_world, tmp_path / name) for name in ("calm", "cut"))
    run_in_process(calm.config, [calm.host()], calm.run_folder)

    owner, _, name = way.gate.rpartition(".")
    sound, arrived, go = pkgutil.resolve_name(way.gate), threading.Semaphore(0), threading.Event()
    died = threading.Event()

    def gated(*arguments: Any) -> Any:
        arrived.release()
        go.wait(60)
        while arguments[1] == way.last_epoch and not died.is_set():
            arguments[0]._tools.attend()  # until the process is told to stop
            time.sleep(0.01)
        return sound(*arguments)

    monkeypatch.setattr(pkgutil.resolve_name(owner), name, gated)
    port = broker.free_port()
    process = start_broker("mosquitto", port, tmp_path)
    with NetworkLoop() as loop:
        cloud = threading.Thread(
            target=serve,
            args=(fleet.config, connector(url(port), loop)),
            kwargs={"run_folder": fleet.run_folder, "resume": False, "stop": threading.Event()},
        )
        cloud.start()
        try:
            with contextlib.ExitStack() as alive:
                alive.enter_context(vehicles_of(fleet, url(port), loop))
                for _ in CARS:
                    assert arrived.acquire(timeout=60)
                process.kill()
                process.wait()
                wait_until(lambda: sum(" lost: " in record.getMessage() for record in caplog.records) == 3)
                go.set()
                for car in CARS:
                    wait_until(lambda car=car: pieces(fleet, car, way.made[0]) >= way.made[1])  # type: ignore[misc]
                if way.dies:
                    alive.close()
                    died.set()
                process = start_broker("mosquitto", port, tmp_path)
                if way.dies:
                    alive.enter_context(vehicles_of(fleet, url(port), loop))
                cloud.join(60)
        finally:
            process.kill()
            process.wait()
    said = [record.getMessage() for record in caplog.records]
    assert sum(way.says in line for line in said) >= len(CARS)
    assert sum("pieces had waited on disk" in line for line in said) == len(CARS)
    assert fleet.fingerprint() == calm.fingerprint()
    assert fleet.scores() == calm.scores()
    for car in CARS:
        ours, theirs = (each.result()["vehicles"][car] for each in (fleet, calm))
        assert all(ours[count] == theirs[count] for count in ("queries", "forwards", "forward_equivalents"))
        assert not (fleet.state_folder(car) / "spool").exists(), "nothing is left"
