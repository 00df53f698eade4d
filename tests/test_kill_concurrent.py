"""SIGKILL to vehicles that learn side by side, and to their cloud: every upload is accounted for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from process_fixtures import Launch, learnt, matches, write_scenario

from cloud_server.ledger import UploadCounts

pytestmark = pytest.mark.timeout(300)

EPOCHS, ROUNDS, VEHICLES = 3, 2, 3

# Stages: 0 tests everyone untrained, 1 and 2 are the rounds of all three, 3 tests everyone at the end.
KILLS: list[tuple[str, dict[str, Any], Sequence[str]]] = [
    ("turn", {"stage": 1, "vehicle": "car-03"}, ["host-03"]),
    ("turn_done", {"stage": 1}, ["host-01", "host-02"]),
    ("learning", {"stage": 1}, ["cloud"]),
    ("turn_done", {"stage": 2}, ["host-01", "cloud"]),
]


@pytest.fixture
def launches(tmp_path: Path) -> Iterator[tuple[Launch, Launch]]:
    """One to be left alone, its vehicles in one process, and one to be killed, its vehicles in three."""

    def launch(name: str, per_host: int) -> Launch:
        scenario = write_scenario(
            tmp_path / f"{name}.yaml",
            tmp_path / "data",
            algorithm="blackfleet",
            vehicles=VEHICLES,
            vehicles_per_host=per_host,
            rounds=ROUNDS,
            cores=VEHICLES,
            first_order={"epochs": EPOCHS},
            local_loss={"warm_up_epochs": 2, "epochs": 2},
            local_head={"width": 8, "depth": 1},
        )
        return Launch(tmp_path / name, scenario)

    made = (launch("calm", VEHICLES), launch("killed", 1))
    yield made
    for one in made:
        one.stop()


def test_no_upload_is_lost_or_trained_on_twice(launches: tuple[Launch, Launch]) -> None:
    calm, killed = launches
    calm.start("--broker", "amqtt").complete()
    ahead = list(KILLS)
    killed.start("--broker", "amqtt")
    for event in killed.follow():
        if ahead and matches(event, *ahead[0][:2]):
            killed.kill(*ahead.pop(0)[2])
    killed.complete()
    assert not ahead, f"never came to {ahead[0]}"
    assert learnt(killed.run_folder) == learnt(calm.run_folder)
    for vehicle, entry in killed.result()["vehicles"].items():
        counts = msgspec.convert(entry["uploads"], UploadCounts)
        uploads = ROUNDS * entry["frames_train"]
        assert (vehicle, counts) == (
            vehicle,
            UploadCounts(
                acknowledged=uploads,
                trained=uploads,
                passes=EPOCHS * uploads,
                discarded=counts.discarded,
            ),
        )
