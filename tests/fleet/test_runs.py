"""`blackfleet runs`: which runs there are, which are wanted, and in what they differ."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from process_fixtures import Refuse
from rich.console import Console

from fleet.cli.run_rows import RunRow, chosen, differing_settings, find_runs
from fleet.cli.runs import show_runs
from fleet.errors import OperatorError
from fleet.run.folder import held
from fleet.scenario import load_scenario, save_scenario


def _make(folder: Path, miou: float | None, **settings: Any) -> Path:
    """A run folder as far as it is looked at."""
    folder.mkdir(parents=True)
    given = {key.replace("__", "."): value for key, value in settings.items()}
    text = save_scenario(load_scenario(None, {"fleet": f"fleet-{folder.name}", **given}))
    (folder / "scenario.yaml").write_text(text)
    if miou is not None:
        result = {
            "algorithm": settings.get("algorithm", "blackfleet"),
            "mean_local_miou": miou,
            "mean_ood_miou": None,
            "uplink_bytes": 1_500_000,
            "downlink_bytes": 20,
            "wall_s": 3725.2,
            "classes": {"road": miou, "car": None},
            "vehicles": {"car-01": {}},
            "confusion": [[1]],
        }
        (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("runs")
    _make(folder / "a-day", 0.5, vehicles=3)
    _make(folder / "b-night", 0.25, vehicles=8, algorithm="fedavg", first_order__rate=1e-3)
    compared = folder / "compared"
    _make(compared, None)  # a comparison has a scenario of its own
    for seed in (0, 1):
        _make(compared / f"split-seed{seed}", 0.3 + seed / 10, algorithm="split", seed=seed)
    _make(folder / "deep" / "stopped", None)
    (folder / "data").mkdir()
    with held(_make(folder / "z-running", None)):
        yield folder


@pytest.fixture(scope="module")
def rows(runs: Path) -> list[RunRow]:
    return find_runs(runs)


def _names(rows: list[RunRow], *conditions: str, order: str | None = None) -> list[str]:
    return [row.name for row in chosen(rows, conditions, order)]


def _shown(folder: Path, *, compare: bool = False, where: tuple[str, ...] = (), width: int = 150) -> str:
    said = io.StringIO()
    console = Console(file=said, width=width, markup=False)
    show_runs(folder, where, order=None, compare=compare, as_json=False, console=console)
    return said.getvalue()


def test_every_run_is_found_and_what_became_of_it(runs: Path, rows: list[RunRow]) -> None:
    states = {row.name: row.state for row in rows}
    assert states == {
        "a-day": "done",
        "b-night": "done",
        "compared/split-seed0": "done",
        "compared/split-seed1": "done",
        "deep/stopped": "stopped",
        "z-running": "running",
    }
    assert [row.name for row in find_runs(runs / "a-day")] == ["a-day"]


@pytest.mark.parametrize(
    ("conditions", "names"),
    [
        (["algorithm=fedavg"], ["b-night"]),
        (["algorithm!=blackfleet", "seed=0"], ["b-night", "compared/split-seed0"]),
        (["name=compared/*", "mean_local_miou>0.35"], ["compared/split-seed1"]),
        (["vehicles>=8"], ["b-night"]),
        (["mean_local_miou<=0.3"], ["b-night", "compared/split-seed0"]),
        (["first_order.rate=1e-3"], ["b-night"]),
        (["state!=done"], ["deep/stopped", "z-running"]),
        (["mean_local_miou=null"], ["deep/stopped", "z-running"]),
        (["mean_ood_miou>0"], []),
    ],
)
def test_conditions_choose(rows: list[RunRow], conditions: list[str], names: list[str]) -> None:
    assert _names(rows, *conditions) == names


def test_runs_are_ordered_by_a_key(rows: list[RunRow]) -> None:
    assert _names(rows, "state=done", order="mean_local_miou")[:2] == ["a-day", "compared/split-seed1"]
    assert _names(rows, order="mean_local_miou")[-2:] == ["deep/stopped", "z-running"]
    assert _names(rows, "state=done", order="algorithm")[0] == "a-day"


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("fedavg", "--where must be such as algorithm=fedavg or vehicles>=8, got 'fedavg'"),
        ("rate=1", "no run here has 'rate'; did you mean "),
        ("nonsense=1", "no run here has 'nonsense'; blackfleet runs --json shows"),
        ("seed>many", "--where seed>many: > is for numbers, got 'many'"),
        ("seed=[1", "the value is not YAML"),
    ],
)
def test_a_wrong_condition_is_refused(rows: list[RunRow], condition: str, said: str) -> None:
    with pytest.raises(OperatorError, match=re.escape(said)):
        _names(rows, condition)


def test_a_folder_that_is_none_is_one_line(tmp_path: Path, refuse: Refuse) -> None:
    assert "is no folder" in refuse("runs", tmp_path / "nowhere")


def test_the_list_keeps_names_and_scores_at_any_width(runs: Path) -> None:
    for width in (60, 150):
        text = _shown(runs, width=width)
        assert all(len(line) <= width for line in text.splitlines()[:-2])
        assert "compared/split-seed1" in text and "0.500" in text
    assert "1:02:05" in text and "1.5 MB" in text
    assert "6 runs in " in text


def test_what_differs_is_shown_side_by_side(runs: Path, rows: list[RunRow]) -> None:
    assert differing_settings(chosen(rows, ["name=compared/*"])) == {"seed": [0, 1]}
    lines = _shown(runs, compare=True, where=("name=compared/*",)).splitlines()
    assert [line.split() for line in lines if line.startswith(" seed")] == [["seed", "0", "1"]]
    assert [line.split()[-2:] for line in lines if "IoU road" in line] == [["0.300", "0.400"]]
    assert any(line.startswith(" 2: compared/split-seed1") for line in lines)


def test_too_many_do_not_stand_side_by_side(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet.cli.runs._SIDE_BY_SIDE", 5)
    with pytest.raises(OperatorError, match="are too many to stand side by side, at most 5 do"):
        _shown(runs, compare=True)


def test_programs_get_everything(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_runs(runs, ["state=done"], order=None, compare=True, as_json=True, console=Console())
    said = json.loads(capsys.readouterr().out)
    assert said["runs"][0]["name"] == "a-day"
    assert said["runs"][0]["settings"]["vehicles"] == 3
    assert said["runs"][0]["result"]["classes"] == {"road": 0.5, "car": None}
    assert said["differences"]["algorithm"] == ["blackfleet", "fedavg", "split", "split"]


def test_runs_of_other_versions_are_listed_and_damaged_ones_named(tmp_path: Path) -> None:
    old = _make(tmp_path / "old", 0.5)
    (old / "scenario.yaml").write_text("bits: 8\nvehicles: 5\nalgorithm: blackfleet\n")
    (_make(tmp_path / "torn", 0.5) / "result.json").write_text("{")
    text = _shown(tmp_path)
    assert "old: scenario" in text and "unknown key bits; it is now coding.bits" in text
    assert "result.json is not JSON" in text
    assert _names(find_runs(tmp_path), "vehicles=5", "mean_local_miou=0.5") == ["old"]
