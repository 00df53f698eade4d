"""SIGKILL to vehicles that learn side by side, and to their cloud: every upload is accounted for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fleet_fixtures import World
from process_fixtures import Launch, learnt, matches, write_scenario

from cloud_server.desk.ledger import UploadCounts

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
def launches(tmp_path: Path, tiny_world: World) -> Iterator[tuple[Launch, Launch]]:
    """One to be left alone and one to be killed."""
    scenario = write_scenario(
        tmp_path / "scenario.yaml",
        tiny_world.data_root,
        dataset={"name": "camvid", "partition": "uniform"},
        algorithm="blackfleet",
        vehicles=VEHICLES,
        rounds=ROUNDS,
        cores=VEHICLES,
        first_order={"epochs": EPOCHS},
        local_loss={"warm_up_epochs": 2, "epochs": 2},
        local_head={"width": 8, "depth": 1},
    )
    made = (Launch(tmp_path / "calm", scenario), Launch(tmp_path / "killed", scenario))
    yield made
    for launch in made:
        launch.stop()


def test_no_upload_is_lost_or_trained_on_twice(launches: tuple[Launch, Launch]) -> None:
    calm, killed = launches
    calm.start("--broker", "memory").complete()
    assert not (calm.run_folder / "processes").exists()
    ahead = list(KILLS)
    killed.start("--broker", "amqtt")
    for event in killed.follow():
        if ahead and matches(event, *ahead[0][:2]):
            killed.kill(*ahead.pop(0)[2])
    killed.complete()
    assert not ahead, f"never came to {ahead[0]}"
    assert learnt(killed.run_folder) == learnt(calm.run_folder)
    for key in ("mean_local_miou", "mean_ood_miou", "initial_local_miou", "classes"):
        assert killed.result()[key] == calm.result()[key]
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
