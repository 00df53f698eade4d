"""SIGKILL to any process of a launched fleet, at any moment, changes nothing of what is learnt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from process_fixtures import Launch, learnt, matches

pytestmark = pytest.mark.timeout(300)

Moment = tuple[str, dict[str, Any]]
"""An event's name and some of its fields."""

# Stages: 0 tests both untrained, 1 and 2 are the first round, 3 and 4 the second, 5 tests both at the end.
GATHERING: Moment = ("joined", {})
QUERYING: Moment = ("turn", {"stage": 1})
TRAINING: Moment = ("learning", {"stage": 2})
VALIDATED: Moment = ("validation", {"stage": 3})
BEFORE_COMMIT: Moment = ("turn_done", {"stage": 3})
BETWEEN_TURNS: Moment = ("committed", {"stage": 3})
TESTING: Moment = ("evaluation", {"stage": 5, "split": "test"})

KILLS: dict[str, list[tuple[Moment, Sequence[str]]]] = {
    "cloud": [
        (QUERYING, ["cloud"]),
        (TRAINING, ["broker", "cloud", "host-01", "host-02"]),
        (BEFORE_COMMIT, ["cloud"]),
        (BETWEEN_TURNS, ["host-02", "cloud"]),
        (TESTING, ["cloud"]),
    ],
    "vehicles and broker": [
        (GATHERING, ["broker"]),
        (QUERYING, ["host-01"]),
        (TRAINING, ["host-02", "broker"]),
        (VALIDATED, ["host-01"]),
        (BETWEEN_TURNS, ["host-02"]),
        (TESTING, ["broker", "host-01"]),
    ],
}


@pytest.fixture
def launch(tmp_path: Path, reference: Launch) -> Iterator[Launch]:
    made = Launch(tmp_path / "run", reference.scenario)
    yield made
    made.stop()


@pytest.mark.parametrize(
    ("kills", "kind"),
    [
        pytest.param(KILLS["cloud"], "amqtt", id="cloud-and-all"),
        # mosquitto where there is one: another broker than the reference's
        pytest.param(KILLS["vehicles and broker"], "auto", id="vehicles-and-broker"),
    ],
)
def test_killed_processes_change_nothing_of_what_is_learnt(
    reference: Launch, launch: Launch, kills: list[tuple[Moment, Sequence[str]]], kind: str
) -> None:
    ahead = list(kills)
    launch.start("--broker", kind)
    for event in launch.follow():
        if ahead and matches(event, *ahead[0][0]):
            launch.kill(*ahead.pop(0)[1])
    launch.complete()
    assert not ahead, f"never came to {ahead[0][0]}"
    assert learnt(launch.run_folder) == learnt(reference.run_folder)
    again, before = launch.result(), reference.result()
    for key in ("mean_local_miou", "mean_ood_miou", "initial_local_miou", "classes"):
        assert again[key] == before[key]
    assert [entry["queries"] for entry in again["vehicles"].values()] == [
        entry["queries"] for entry in before["vehicles"].values()
    ]
