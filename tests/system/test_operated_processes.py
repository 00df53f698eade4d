"""Processes of a fleet that an operator kills, revives, pauses and resumes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from process_fixtures import is_alive

from fleet.run.controls import Refused
from fleet.run.processes import ProcessSpec, ProcessTable

NAMES = ("broker", "cloud", "host-01")
Told = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def told() -> Told:
    return []


@pytest.fixture
def table(tmp_path: Path, told: Told) -> Iterator[ProcessTable]:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    specs = [
        ProcessSpec(name=name, command=command, stays=name == "broker", leads=name == "cloud")
        for name in NAMES
    ]

    def tell(name: str, /, **values: Any) -> None:
        told.append((name, values))

    with ProcessTable(specs, tmp_path, tell) as table:
        yield table


def running(folder: Path) -> dict[str, int]:
    ids = json.loads((folder / "processes.json").read_text())
    return {name: number for name, number in ids.items() if is_alive(number)}


def test_killed_process_stays_so_until_it_is_revived(table: ProcessTable, told: Told, tmp_path: Path) -> None:
    before = running(tmp_path)
    table.kill("host-01")
    assert table.check() and running(tmp_path).keys() == {"broker", "cloud"}
    with pytest.raises(Refused, match="host-01 does not run"):
        table.kill("host-01")
    with pytest.raises(Refused, match="cloud was not killed"):
        table.revive("cloud")
    with pytest.raises(Refused, match="no process or vehicle 'car-99'"):
        table.kill("car-99")
    table.revive("host-01")
    now = running(tmp_path)
    assert (
        now.keys() == before.keys()
        and now["host-01"] != before["host-01"]
        and now["cloud"] == before["cloud"]
    )
    assert told == [
        ("processes", {"processes": {name: [] for name in NAMES}}),
        ("killed", {"process": "host-01"}),
        ("revived", {"process": "host-01"}),
    ]


def test_paused_run_has_no_process_but_those_that_stay(
    table: ProcessTable, told: Told, tmp_path: Path
) -> None:
    before = running(tmp_path)
    table.kill("host-01")
    table.pause()
    assert table.check() and running(tmp_path) == {"broker": before["broker"]}
    for refused in (table.pause, lambda: table.revive("host-01")):
        with pytest.raises(Refused, match="paused"):
            refused()
    table.resume()
    assert table.check() and running(tmp_path).keys() == before.keys()
    assert running(tmp_path)["broker"] == before["broker"]
    with pytest.raises(Refused, match="not paused"):
        table.resume()
    assert [name for name, _ in told] == ["processes", "killed", "paused", "resumed"]
