"""A vehicle works when the car allows it, and loses nothing by waiting."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

import msgspec
import pytest
from fleet_fixtures import CARS, TinyFleet
from supervision import Supervisor

from cloud_server.config import PatienceConfig
from cloud_server.errors import CloudError
from cloud_server.run.stage_turns import TurnTime
from edge_client.errors import VehicleError
from edge_client.host import HostConfig
from edge_client.permission import Permission
from fleet.run.in_process import run_in_process

PROGRESS = {"query", "upload", "turn_done"}


class Parked(TinyFleet):
    """Whose vehicles may work while a file says yes, and tell how their machine is."""

    def host(self, *cars: str, give_up_s: float = 30.0) -> HostConfig:
        host = super().host(*cars, give_up_s=give_up_s)
        return msgspec.structs.replace(host, when=str(self.folder / "parked"), when_poll_s=1e-6, health=True)


def test_work_that_pauses_in_the_midst_of_turns_ends_with_the_bits_of_undisturbed_work(
    undisturbed: TinyFleet, tmp_path: Path
) -> None:
    fleet = Parked(undisturbed.world, tmp_path)
    allowed = tmp_path / "parked"
    allowed.write_text("yes")
    supervisor = Supervisor(fleet)
    seen: list[str] = []
    in_pauses: list[int] = []

    def go_on(before: int) -> None:
        in_pauses.append(len(seen) - before)
        allowed.write_text("yes\n")

    def stop_the_car(_: Supervisor, message_tag: str, car: str) -> None:
        if message_tag not in PROGRESS:
            return
        seen.append(message_tag)
        if len(seen) in (3, 20):  # the first turn's queries, and later ones
            allowed.write_text("no\n")
            threading.Timer(0.7, go_on, (len(seen),)).start()

    supervisor.sabotage(stop_the_car)
    supervisor.run()
    assert fleet.fingerprint() == undisturbed.fingerprint()
    assert len(in_pauses) == 2
    assert max(in_pauses) <= 4, "nothing sets out but what was made before"
    log = [json.loads(line) for line in (fleet.run_folder / "log.jsonl").read_text().splitlines()]
    told = [event for event in log if event["event"] == "health"]
    assert any(event["is_paused"] for event in told), "the cloud's operator sees it"
    assert all(event["vehicle"] in CARS and event["free_disk_mb"] > 0 for event in told)


def test_pause_does_not_count_as_time_of_the_turn_and_has_a_bound_of_its_own(
    undisturbed: TinyFleet, tmp_path: Path
) -> None:
    time = TurnTime(began_at=100.0)
    for now, is_paused in ((103.0, False), (1000.0, True), (1001.0, False)):
        time.look(now, is_paused=is_paused)
    assert (time.worked_s, time.paused_s) == (4.0, 897.0)

    patience = PatienceConfig(retry_s=0.2, give_up_s=30, heartbeat_s=0.5, paused_s=0.5, on_failure="stop")
    fleet = Parked(undisturbed.world, tmp_path, patience=patience)
    (tmp_path / "parked").write_text("no")
    with pytest.raises(CloudError, match=r"was not allowed to work for \d+ s of turn 0 \(limit 0.5 s\)"):
        run_in_process(fleet.config, [fleet.host()], fleet.run_folder)
    told = fleet.events("health")
    assert {event["vehicle"] for event in told if event["is_paused"]} == set(CARS)
    assert {event["vehicle"] for event in told if event["free_disk_mb"]} == {CARS[0]}, "one tells for all"


@pytest.mark.parametrize(
    ("content", "holds", "why"),
    [
        ("yes\n", True, ""),
        (" NO", False, "says no"),
        ("maybe", False, "yes or no was expected"),
        ("", False, "yes or no was expected"),
        (None, False, "can't be read (No such file or directory)"),
    ],
)
def test_file_is_a_yes_only_where_it_says_so(
    content: str | None, holds: bool, why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "may-work"
    if content is not None:
        path.write_text(content)
    caplog.set_level(logging.INFO)
    permission = Permission(str(path), poll_s=5)
    assert permission.holds() is permission.holds() is holds
    assert [why in record.message for record in caplog.records] == ([] if holds else [True])


def test_command_is_asked_seldom_and_its_code_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = [100.0]
    mark = tmp_path / "charging"
    permission = Permission(f"command:test -e {mark}", poll_s=5, clock=lambda: now[0])
    assert not permission.holds()
    mark.touch()
    assert not permission.holds(), "the latest answer holds"
    now[0] += 5
    assert permission.holds()


@pytest.mark.parametrize("line", ["", "no-such-program --parked", "test 'unbalanced"])
def test_command_that_there_is_not_is_refused_at_once(line: str) -> None:
    with pytest.raises(VehicleError, match="--when command:"):
        Permission(f"command:{line}", poll_s=5)
