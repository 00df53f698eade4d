"""A run's folder: nothing in it passes for another run, and it means the same wherever it is resumed from."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import msgspec
import pytest
from fleet_fixtures import World
from start_fixtures import QUIET, changed, killed_after, learnt, run

from datasets.frame import DatasetError
from fleet.cli.sweep import compare
from fleet.errors import OperatorError
from fleet.run.folder import LEFT_BY_COMPARISONS, LEFT_BY_RUNS, settled, with_own_fleet
from fleet.run.pretrain import pretrain
from fleet.scenario import DatasetPart, EncoderPart, EvaluationPart, Scenario, load_scenario
from fleet.start import Start
from protocol.plans.first_order import FirstOrder

ROOT = Path(__file__).resolve().parents[2]
_NEITHER = {"data", ".lock"}
"""What is in a run's folder and is no left-over of one."""


@pytest.fixture(scope="module")
def scenario(tiny_world: World) -> Scenario:
    return Scenario(
        algorithm="centralized",
        vehicles=2,
        rounds=1,
        image_size="64x48",
        cores=1,
        broker="memory",
        encoder=EncoderPart(name="stride8-c4", mode="rebuild"),
        dataset=DatasetPart(name="camvid", root=str(tiny_world.data_root)),
        first_order=FirstOrder(epochs=1, batch_size=4),
        evaluation=EvaluationPart(overlays=1),
    )


@pytest.fixture(scope="module")
def comparison(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that is complete, of a run each with and without a fleet."""
    folder = tmp_path_factory.mktemp("comparison") / "c"
    compare(scenario, ("centralized", "frozen"), (0,), folder, console=QUIET)
    return folder


# What another run has left ---------------------------------------------------------------------------------


def test_every_single_thing_that_a_run_leaves_keeps_another_one_out(
    scenario: Scenario, comparison: Path, start: Start, tmp_path: Path
) -> None:
    left = [
        path for folder in ("centralized-seed0", "frozen-seed0") for path in (comparison / folder).iterdir()
    ]
    left += list(start.folder.iterdir())
    left += [path for path in comparison.iterdir() if "-seed" not in path.name]
    names = {path.name for path in left} - _NEITHER
    assert names <= LEFT_BY_RUNS
    assert len(names) > 15
    for path in left:
        if path.name in _NEITHER | {"scenario.yaml"}:
            continue
        folder = tmp_path / path.name
        shutil.copytree(path, folder / path.name) if path.is_dir() else _copied(path, folder / path.name)
        before = _content(folder)
        with pytest.raises(
            OperatorError, match=rf"holds what another run has left \({re.escape(path.name)}\)"
        ):
            run(scenario, folder)
        with pytest.raises(OperatorError, match="holds what another run has left"):
            pretrain(scenario, folder, resume=False, console=QUIET)
        with pytest.raises(OperatorError, match="holds something else than a comparison"):
            compare(scenario, ("centralized",), (0,), folder, console=QUIET)
        assert _content(folder) == before
        shutil.rmtree(folder)


def _copied(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True)
    shutil.copy(source, target)


def _content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_the_documents_name_what_a_run_leaves() -> None:
    text = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
    table = text.split("## What a run leaves behind")[1].split("\n## ")[0]
    named = {name.split("/")[0] for row in table.splitlines() for name in re.findall(r"^\| (.*?) \|", row)}
    named = {name.strip("`") for row in named for name in row.split(", ")}
    assert named - {"in the run folder", "---", "data"} <= LEFT_BY_RUNS


def test_a_folder_with_other_things_is_taken(scenario: Scenario, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    run(scenario, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_attempt_that_made_no_run_leaves_the_folder_free(
    target_scenario: Scenario, start: Start, tmp_path: Path
) -> None:
    """The start is copied before it is found that the data lack a frame of its source."""
    folder = tmp_path / "run"
    strangers = msgspec.structs.replace(target_scenario.dataset, cities=("nowhere",))
    with pytest.raises(DatasetError, match="nowhere"):
        run(changed(target_scenario, dataset=strangers), folder)
    assert {path.name for path in folder.iterdir()} <= _NEITHER
    with killed_after(1):
        run(target_scenario, folder)


def test_a_run_whose_settings_are_lost_is_not_taken_for_complete_by_a_comparison(
    scenario: Scenario, comparison: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(comparison, tmp_path / "c")
    (folder / "centralized-seed0" / "scenario.yaml").unlink()
    with pytest.raises(OperatorError, match=r"centralized-seed0 holds what another run has left"):
        compare(scenario, ("centralized", "frozen"), (0,), folder, console=QUIET)


def test_runs_and_comparisons_are_not_taken_for_each_other(
    scenario: Scenario, comparison: Path, tmp_path: Path
) -> None:
    with pytest.raises(OperatorError, match="holds a comparison and no run; go on with `blackfleet compare`"):
        run(scenario, comparison, resume=True)
    with pytest.raises(OperatorError, match=r"holds a run \(.*result\.json.*\) and no comparison"):
        compare(scenario, ("centralized",), (0,), comparison / "centralized-seed0", console=QUIET)
    assert {"scenario.yaml", "report.html"} <= LEFT_BY_COMPARISONS


# Paths -----------------------------------------------------------------------------------------------------


def test_a_run_with_relative_paths_is_resumed_from_another_folder(
    target_scenario: Scenario,
    start: Start,
    tiny_world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    elsewhere.mkdir()
    there.mkdir()
    (there / "cv").symlink_to(tiny_world.data_root)
    (there / "begin").symlink_to(start.folder)
    relative = changed(
        target_scenario,
        start="begin",
        dataset=msgspec.structs.replace(target_scenario.dataset, root="cv"),
    )
    monkeypatch.chdir(there)
    with killed_after(2):
        run(relative, Path("run"))
    undisturbed = run(relative, Path("undisturbed"))
    kept = load_scenario(there / "run" / "scenario.yaml", {})
    assert (kept.dataset.root, kept.start) == (str(there / "cv"), str(there / "begin"))
    monkeypatch.chdir(elsewhere)
    given = load_scenario(None, {"broker": "memory"}, kept=there / "run" / "scenario.yaml")
    resumed = run(given, there / "run", resume=True)
    assert resumed["classes"] == undisturbed["classes"]
    assert learnt(there / "run") == learnt(there / "undisturbed")
    assert list(elsewhere.iterdir()) == []
    # Given again from there, the same words mean other folders.
    with pytest.raises(
        OperatorError, match=r"dataset\.root was .*there/cv, is now .*elsewhere/cv; start was "
    ):
        run(relative, there / "run", resume=True)


def test_a_comparison_with_a_relative_path_goes_on_from_another_folder(
    scenario: Scenario, tiny_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cv").symlink_to(tiny_world.data_root)
    (tmp_path / "below").mkdir()
    data = msgspec.structs.replace(scenario.dataset, root="cv")
    monkeypatch.chdir(tmp_path)
    compare(changed(scenario, dataset=data), ("centralized",), (0,), Path("c"), console=QUIET)
    monkeypatch.chdir(tmp_path / "below")
    data = msgspec.structs.replace(data, root=str(tmp_path / "cv"))
    compare(changed(scenario, dataset=data), ("centralized",), (0, 1), tmp_path / "c", console=QUIET)


def test_every_path_of_a_scenario_is_kept_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that a later setting brings: what its description calls a folder or a file is a path."""
    monkeypatch.chdir(tmp_path)
    relative_to_the_run = {"network.start", "network.source_features"}
    paths = {key for key in _settings(Scenario()) if key.endswith((".root", "start", ".weights"))}
    assert paths - relative_to_the_run == {"dataset.root", "start", "network.weights", "encoder.weights"}
    content = {"dataset": {"root": "a"}, "start": "b"}
    kept = settled(msgspec.convert(content, Scenario))
    assert (kept.dataset.root, kept.start) == (str(tmp_path / "a"), str(tmp_path / "b"))
    kept = settled(msgspec.convert({"network": {"weights": "w"}}, Scenario))
    assert kept.network.weights == str(tmp_path / "w")
    assert (kept.dataset.root, kept.start) == (None, None)


def _settings(scenario: Scenario) -> set[str]:
    keys: set[str] = set()

    def walk(content: dict[str, object], prefix: str) -> None:
        for key, value in content.items():
            walk(value, f"{prefix}{key}.") if isinstance(value, dict) else keys.add(prefix + key)

    walk(msgspec.to_builtins(scenario), "")
    return keys


# The fleet's name ------------------------------------------------------------------------------------------


def test_every_run_is_a_fleet_of_its_own_and_stays_it(scenario: Scenario, tmp_path: Path) -> None:
    one, other = (run(scenario, tmp_path / name) for name in ("one", "other"))
    names = [load_scenario(tmp_path / name / "scenario.yaml", {}).fleet for name in ("one", "other")]
    assert all(re.fullmatch(r"fleet-[0-9a-f]{8}", str(name)) for name in names)
    assert names[0] != names[1]
    assert one["classes"] == other["classes"]
    run(scenario, tmp_path / "one", resume=True)
    assert load_scenario(tmp_path / "one" / "scenario.yaml", {}).fleet == names[0]
    assert with_own_fleet(changed(scenario, fleet="mine")).fleet == "mine"


def test_what_is_learnt_does_not_depend_on_the_fleets_name(scenario: Scenario, tmp_path: Path) -> None:
    fleet = changed(scenario, algorithm="blackfed-v2")
    results = [run(changed(fleet, fleet=name), tmp_path / name) for name in ("a", "another-name")]
    assert learnt(tmp_path / "a") == learnt(tmp_path / "another-name")
    assert results[0]["classes"] == results[1]["classes"]
    assert results[0]["uplink_bytes"] < results[1]["uplink_bytes"]
