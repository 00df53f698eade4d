"""A real broker is killed in the middle of a turn: its vehicles go on, and lose nothing, even if they die."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from brokers import skip_without, start_broker
from fleet_fixtures import CARS, TinyFleet, World
from mqtt_fixtures import url, wait_until
from supervision import Supervisor

from cloud_server.run.service import serve
from edge_client.conversation import Stopped
from edge_client.host import Host, HostConfig
from fleet import broker
from protocol.mqtt.connect import connector
from protocol.mqtt.transport import NetworkLoop
from protocol.plans.local_loss import LocalLossPlan

pytestmark = pytest.mark.timeout(120)


class Parked(TinyFleet):
    """Whose vehicles stand still while a file says no, so that the broker dies in the midst of a turn."""

    def host(self, *cars: str, give_up_s: float = 30.0) -> HostConfig:
        host = super().host(*cars, give_up_s=give_up_s)
        return msgspec.structs.replace(host, when=str(self.folder / "may-work"), when_poll_s=0.01)

    def pieces(self, car: str) -> list[Path]:
        return sorted((self.state_folder(car) / "spool").glob("*.kept"))


def fleet_of(world: World, folder: Path) -> Parked:
    (folder / "may-work").write_text("yes")
    plan = LocalLossPlan(warm_up_epochs=20, epochs=20, weight_power=0.5)
    return Parked(world, folder, algorithm="blackfleet", local_loss=plan)


@contextlib.contextmanager
def vehicles_of(fleet: Parked, address: str, loop: NetworkLoop) -> Iterator[None]:
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


def test_broker_and_vehicles_that_die_in_a_turn_change_nothing(
    tiny_world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    skip_without("mosquitto")
    caplog.set_level(logging.INFO)
    (tmp_path / "calm").mkdir()
    calm = fleet_of(tiny_world, tmp_path / "calm")
    Supervisor(calm).run()
    caplog.clear()

    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records]

    fleet, port = fleet_of(tiny_world, tmp_path), broker.free_port()
    may_work = tmp_path / "may-work"
    process = start_broker("mosquitto", port, tmp_path)
    with NetworkLoop() as loop:
        cloud = threading.Thread(
            target=serve,
            args=(fleet.config, connector(url(port), loop)),
            kwargs={"run_folder": fleet.run_folder, "resume": False, "stop": threading.Event()},
        )
        cloud.start()
        log = fleet.run_folder / "log.jsonl"
        try:
            with vehicles_of(fleet, url(port), loop):
                wait_until(lambda: log.exists() and any(turn["round"] == 1 for turn in fleet.events("turn")))
                may_work.write_text("no")
                wait_until(lambda: sum("turn 1 begins" in line for line in said()) == len(CARS))
                process.kill()
                process.wait()
                may_work.write_text("yes")
                for car in CARS:  # what was learnt, and the features of train and val frames
                    wait_until(lambda car=car: len(fleet.pieces(car)) >= 3)  # type: ignore[misc]
            process = start_broker("mosquitto", port, tmp_path)
            caplog.clear()
            with vehicles_of(fleet, url(port), loop):
                cloud.join(60)
        finally:
            process.kill()
            process.wait()
    assert sum("goes on after 40 of 40 epochs" in line for line in said()) == len(CARS)
    assert sum("pieces had waited on disk" in line for line in said()) == len(CARS)
    assert fleet.fingerprint() == calm.fingerprint()
    assert fleet.scores() == calm.scores()
    for car in CARS:
        assert fleet.result()["vehicles"][car]["queries"] == calm.result()["vehicles"][car]["queries"]
        assert not (fleet.state_folder(car) / "spool").exists(), "nothing is left"
