"""A fleet of many vehicles on one machine: few threads, frames drawn when read, some drawn a round."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fleet.run.launch import launch
from fleet.scenario import load_scenario
from fleet.scenario_file import read_table

CARS = 40
_FEW_THREADS = 26


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a fleet of fewer vehicles than that count as large."""
    for module in ("fleet.many_vehicles", "fleet.frames.rendering", "fleet.run.fleet_run"):
        monkeypatch.setattr(f"{module}.MANY", CARS - 1)


def _most_threads(over: threading.Event, counts: list[int]) -> None:
    while not over.wait(0.02):
        counts.append(threading.active_count())


@pytest.mark.usefixtures("many")
def test_many_vehicles_end_well_by_default_with_few_threads_and_frames(tmp_path: Path) -> None:
    given: dict[str, Any] = {"vehicles": CARS, "image_size": "48x32", "rounds": 2, "participation": "6"}
    tiny = {"evaluation.vehicles": 5, "broker": "memory", "cores": 2, "first_order.epochs": 1}
    scenario = load_scenario(None, given | tiny)
    said, over, counts = io.StringIO(), threading.Event(), [0]
    watching = threading.Thread(target=_most_threads, args=(over, counts))
    before = threading.active_count()
    watching.start()
    try:
        result = launch(scenario, tmp_path / "run", resume=False, console=Console(file=said, width=300))
    finally:
        over.set()
        watching.join()
    assert max(counts) - before < _FEW_THREADS
    assert said.getvalue().startswith(f"{CARS} vehicles: short turns, and a sample of the fleet is tested")
    kept = read_table(tmp_path / "run" / "scenario.yaml")
    assert (kept["local_loss"]["warm_up_epochs"], kept["dataset"]["generated_cities"]) == (8, 2)
    tested = [name for name, entry in result["vehicles"].items() if entry["local_miou"] is not None]
    assert len(tested) == 5
    assert all(result["vehicles"][name]["ood_miou"] is not None for name in tested)
    assert sorted(path.name for path in (tmp_path / "run" / "vehicles").iterdir()) == [
        "host-01.sqlite",
        "host-02.sqlite",
    ]
    pictures = list((tmp_path / "run" / "data").rglob("*_leftImg8bit.png"))
    # Train and validation frames of those drawn, one test frame of those tested, and what the encoder begins
    # with: far from the three frames of each.
    assert 0 < len(pictures) <= 2 * 2 * 6 + 5 < 3 * CARS
