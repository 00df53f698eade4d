"""`blackfleet compare`: every run once, one table, and a clear word about what does not fit."""

from __future__ import annotations

import io
import json
from pathlib import Path

import msgspec
import pytest
from fleet_fixtures import World
from rich.console import Console

import fleet.run.launch
from cloud_server.config import ZerothOrderConfig
from fleet.cli.sweep import compare, parse_algorithms, parse_seeds, with_controls
from fleet.compare.tables import comparison_tables, markdown, summarise
from fleet.errors import OperatorError
from fleet.run.job import Job
from fleet.scenario import DatasetPart, EncoderPart, EvaluationPart, Scenario
from protocol.plans.first_order import FirstOrder
from protocol.plans.local_loss import LocalLossPlan
from protocol.plans.spsa import SpsaPlan

_QUIET = Console(quiet=True)


@pytest.fixture
def scenario(tiny_world: World) -> Scenario:
    return Scenario(
        vehicles=2,
        rounds=1,
        image_size="64x48",
        broker="memory",
        cores=1,
        encoder=EncoderPart(name="stride8-c4", mode="rebuild"),
        dataset=DatasetPart(name="camvid", root=str(tiny_world.data_root)),
        first_order=FirstOrder(epochs=1, batch_size=4),
        zeroth_order=ZerothOrderConfig(batches=1, batch_size=2),
        spsa=SpsaPlan(queries=1),
        evaluation=EvaluationPart(overlays=1),
    )


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(algorithm, seed) of each run that a runner was started for."""
    runs: list[tuple[str, int]] = []
    run_centralized = fleet.run.launch.run_centralized

    def noted(job: Job) -> None:
        runs.append((job.scenario.algorithm, job.scenario.seed))
        if len(runs) == 2:
            raise KeyboardInterrupt
        run_centralized(job)

    monkeypatch.setattr(fleet.run.launch, "run_centralized", noted)
    return runs


def test_fleet_and_centralized_stand_in_one_table(scenario: Scenario, tmp_path: Path) -> None:
    content = compare(scenario, ("frozen", "centralized"), (0,), tmp_path / "c", console=_QUIET)
    assert content == json.loads((tmp_path / "c" / "compare.json").read_text())
    assert [entry["algorithm"] for entry in content["summary"]] == ["frozen", "centralized"]
    for run, entry in zip(content["runs"], content["summary"], strict=True):
        assert (tmp_path / "c" / run["folder"] / "partition.json").is_file()
        assert entry["local_miou_mean"] == run["result"]["mean_local_miou"]
        assert set(entry["vehicles"]) == {"car-01", "car-02"}
    frozen, centralized = content["summary"]
    assert frozen["frames_seen"] == centralized["frames_seen"]
    assert frozen["uplink_bytes"] > centralized["uplink_bytes"] == 0
    partitions = [(tmp_path / "c" / run["folder"] / "partition.json").read_bytes() for run in content["runs"]]
    assert partitions[0] == partitions[1]
    initial = [run["result"]["initial_local_miou"] for run in content["runs"]]
    assert initial[0] == pytest.approx(initial[1], abs=0.01)  # the fleet's features are quantised
    text = (tmp_path / "c" / "compare.md").read_text()
    assert "| frozen |" in text
    assert "Up to the quality of frozen" in text
    milestones = content["milestones"]
    assert milestones["reference"] == "frozen"
    fleet, alone = milestones["algorithms"]
    assert fleet["reached"] == 1 and 0 < fleet["bytes"] < frozen["uplink_bytes"] + frozen["downlink_bytes"]
    assert alone["bytes"] == 0 and 0 < alone["wall_s"] < centralized["wall_s"]
    assert "| car-02 |" in text
    assert "centralized" in (tmp_path / "c" / "report.html").read_text()


def test_whoever_reads_a_comparison_reads_who_failed(scenario: Scenario, tmp_path: Path) -> None:
    content = compare(scenario, ("centralized",), (0,), tmp_path / "c", console=_QUIET)
    content["runs"][0]["result"]["failed"] = {"car-02": "disk full"}
    sentence = "centralized (seed 0) is without car-02, which failed: disk full"
    assert sentence in markdown(content)
    assert comparison_tables(content)[0].caption == sentence


def test_reference_outside_the_comparison_is_refused(scenario: Scenario, tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"--reference 'split' is not among .* \(frozen, centralized\)"):
        compare(scenario, ("frozen", "centralized"), (0,), tmp_path / "c", reference="split", console=_QUIET)
    assert not (tmp_path / "c").exists()


def test_interrupted_comparison_goes_on_and_finished_runs_are_kept(
    scenario: Scenario, tmp_path: Path, started: list[tuple[str, int]]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        compare(scenario, ("centralized",), (0, 1), tmp_path / "c", console=_QUIET)
    assert not (tmp_path / "c" / "compare.json").exists()
    content = compare(scenario, ("centralized",), (0, 1), tmp_path / "c", console=_QUIET)
    assert started == [("centralized", 0), ("centralized", 1), ("centralized", 1)]
    assert [run["seed"] for run in content["runs"]] == [0, 1]


def test_another_scenario_is_refused_and_another_broker_is_not(
    scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "c"
    compare(scenario, ("centralized",), (0,), folder, console=_QUIET)
    with pytest.raises(OperatorError, match="rounds was 1, is now 2; give the same options again"):
        compare(msgspec.structs.replace(scenario, rounds=2), ("centralized",), (0,), folder, console=_QUIET)
    elsewhere = msgspec.structs.replace(scenario, broker="mqtt://somewhere")
    compare(elsewhere, ("centralized",), (0,), folder, console=_QUIET)


def test_folder_of_something_else_is_refused(scenario: Scenario, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").touch()
    with pytest.raises(OperatorError, match="holds something else than a comparison"):
        compare(scenario, ("centralized",), (0,), tmp_path, console=_QUIET)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "names nothing"), ("0,x", "got 'x'"), ("-1", "got '-1'"), ("1,1", "names 1 twice")],
)
def test_impossible_seeds_are_refused(text: str, message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        parse_seeds(text)


def test_algorithms_are_those_of_fleets_and_those_without() -> None:
    assert parse_algorithms("split, centralized") == ("split", "centralized")
    with pytest.raises(OperatorError, match=r"unknown algorithm 'fedavgg', expected one of: .*centralized"):
        parse_algorithms("split,fedavgg")


@pytest.mark.parametrize(
    ("named", "power", "run"),
    [
        ("blackfleet,split", 0.5, "blackfleet,blackfleet-no-feedback,split"),
        ("blackfleet-no-feedback,blackfleet", 0.5, "blackfleet-no-feedback,blackfleet"),
        ("blackfleet,split", 0.0, "blackfleet,split"),
        ("split,blackfed-v2", 0.5, "split,blackfed-v2"),
    ],
)
def test_what_feedback_buys_is_measured_beside_whoever_learns_from_it(
    scenario: Scenario, named: str, power: float, run: str
) -> None:
    scenario = msgspec.structs.replace(scenario, local_loss=LocalLossPlan(weight_power=power))
    said = io.StringIO()
    console = Console(file=said, width=120)
    assert ",".join(with_controls(named.split(","), scenario, console)) == run
    assert ("--no-control" in said.getvalue()) == (named != run)


def test_summary_has_mean_and_sample_deviation_over_seeds() -> None:
    def run(local: float, ood: float | None) -> dict[str, object]:
        vehicle = {"local_miou": local, "ood_miou": ood, "queries": 3}
        counts = {"uplink_bytes": 10, "downlink_bytes": 4, "frames_seen": 7, "wall_s": 2.0}
        result = {"mean_local_miou": local, "mean_ood_miou": ood, "vehicles": {"car": vehicle}, **counts}
        return {"algorithm": "a", "result": result}

    [summary] = summarise(["a"], [run(0.2, None), run(0.4, None)])
    assert summary["local_miou_mean"] == pytest.approx(0.3)
    assert summary["local_miou_std"] == pytest.approx(0.02**0.5)
    assert (summary["ood_miou_mean"], summary["ood_miou_std"]) == (None, None)
    assert summary["vehicles"]["car"]["local_miou_std"] == summary["local_miou_std"]
    assert (summary["queries"], summary["uplink_bytes"]) == (3, 10)
