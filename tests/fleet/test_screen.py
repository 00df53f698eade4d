"""What is shown: others' text as it is, on any terminal, the figures that matter at any width."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from typing import Any

import pytest
from process_fixtures import ROOT, environment
from rich.console import RenderableType

from datasets.catalog import label_space
from evaluation.scores import ConfusionMatrix, summarize
from fleet.cli.evaluation_report import EvaluationReport, print_report
from fleet.compare.milestones import find_milestones
from fleet.compare.tables import comparison_tables, summarise
from fleet.scenario import Scenario
from fleet.show.progress import Progress, result_table
from fleet.show.screen import Column, FittedTable, screen

WIDTHS = (40, 60, 75, 80)
LONG = "a-vehicle-with-a-name-of-sixty-four-characters-which-is-the-most"
BRACKETS = "[bold]x[/red] [link=a"


def _shown(renderable: RenderableType, width: int) -> str:
    console = screen(file=io.StringIO(), width=width)
    console.print(renderable)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in text.splitlines()), text
    return str(text)


def _entry(**scores: float) -> dict[str, Any]:
    return {
        "frames_train": 42,
        "initial_local_miou": 0.112,
        "local_miou": 0.381,
        "ood_miou": 0.123,
        "queries": 12345,
        "uplink_bytes": 123_400_000,
        "downlink_bytes": 27_300,
        **scores,
    }


def _result(*vehicles: str, source: bool = False) -> dict[str, Any]:
    scores = {"initial_source_miou": 0.511, "source_miou": 0.489} if source else {}
    means = {"initial_source_miou": 0.511, "mean_source_miou": 0.489} if source else {}
    return {
        "algorithm": "blackfleet",
        "dataset": BRACKETS,
        "seed": 0,
        "rounds": 4,
        "wall_s": 113.2,
        "initial_local_miou": 0.112,
        "mean_local_miou": 0.356,
        "mean_ood_miou": 0.165,
        "uplink_bytes": 493_600_000,
        "downlink_bytes": 109_200,
        "frames_seen": 168,
        "vehicles": {vehicle: _entry(**scores) for vehicle in vehicles},
        **means,
    }


@pytest.mark.parametrize("source", [False, True], ids=["", "with a source"])
@pytest.mark.parametrize("name", ["car-01", LONG])
@pytest.mark.parametrize("width", WIDTHS)
def test_result_keeps_its_scores_at_any_width(width: int, name: str, source: bool) -> None:
    text = _shown(result_table(_result(name, "car-02", source=source)), width)
    for score in ("0.381", "0.123", "0.356", "0.165"):
        assert score in text, text
    assert name[:8] in text
    for label in ("local", "OOD"):
        assert label in text
    if width == 80 and name != LONG:
        assert "no room" not in text and "12345" in text and "123.4 MB" in text


@pytest.mark.parametrize("width", WIDTHS)
def test_live_table_keeps_names_and_scores_at_any_width(width: int) -> None:
    console = screen(file=io.StringIO(), width=width, force_terminal=True)
    with Progress(Scenario(vehicles=3), console) as progress:
        progress.event("learning", {"vehicle": "car-01", "done": 10, "total": 12, "loss": 1.234})
        progress.event(
            "validation", {"vehicle": "car-01", "round": 1, "miou": 0.321, "best": 0.432, "loss": 1.0}
        )
        text = _shown(progress._render(), width)
    assert "car-01" in text and "0.432" in text, text
    assert "cloud trains 10/12" in text


def test_live_table_shows_a_lost_vehicle_as_lost_whatever_the_cloud_does_for_it() -> None:
    console = screen(file=io.StringIO(), width=100, force_terminal=True)
    learning = {"vehicle": "car-01", "done": 10, "total": 12, "loss": 1.234}
    with Progress(Scenario(vehicles=2), console) as progress:
        progress.event("left", {"vehicle": "car-01"})
        progress.event("learning", learning)
        text = _shown(progress._render(), 100)
        assert "lost" in text and "cloud trains" not in text, text
        progress.event("back", {"vehicle": "car-01"})
        progress.event("learning", learning)
        text = _shown(progress._render(), 100)
        assert "lost" not in text and "cloud trains 10/12" in text, text


def _comparison() -> dict[str, Any]:
    algorithms = ("blackfed-v1", "blackfed-v2", "centralized")
    runs = [
        {
            "algorithm": algorithm,
            "seed": seed,
            "result": {**_result("car-01", "car-02"), "mean_local_miou": 0.356 + seed / 100},
        }
        for algorithm in algorithms
        for seed in (0, 1)
    ]
    return {
        "algorithms": list(algorithms),
        "seeds": [0, 1],
        "runs": runs,
        "summary": summarise(algorithms, runs),
        "milestones": find_milestones(algorithms, "blackfed-v2", {}),
    }


@pytest.mark.parametrize("width", WIDTHS)
def test_comparison_keeps_its_scores_at_any_width(width: int) -> None:
    summary, milestones = (_shown(table, width) for table in comparison_tables(_comparison()))
    for name in ("blackfed-v1", "blackfed-v2", "centralized"):
        assert re.search(rf"{name} +0\.361 ± 0\.007 +0\.165", summary), summary
        assert name in milestones, milestones
    assert "final" in milestones and "0 of 0" not in summary


@pytest.mark.parametrize("width", WIDTHS)
def test_evaluation_keeps_its_scores_at_any_width(width: int) -> None:
    labels = label_space("cityscapes")
    matrix = ConfusionMatrix(labels)
    console = screen(file=io.StringIO(), width=width)
    report = EvaluationReport(
        dataset="cityscapes",
        frames=1,
        ground_truth_frames=1,
        summary=summarize(matrix),
        vehicles={LONG: 0.4321, BRACKETS: 0.1234},
    )
    print_report(report, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "43.2" in text and "12.3" in text and "[bold]x" in text, text


def test_text_of_others_is_shown_as_it_is() -> None:
    console = screen(file=io.StringIO(), width=200)
    table = FittedTable([Column("name"), Column("[b]figure[/b]")], title=BRACKETS)
    table.add_row(BRACKETS, ":smile: [/]")
    console.print(table)
    console.print(f"results in {BRACKETS}", soft_wrap=True)
    with Progress(Scenario(vehicles=1), console) as progress:
        progress.event("reject", {"vehicle": "car-01", "reason": BRACKETS})
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count(BRACKETS) == 4
    assert ":smile: [/]" in text and "[b]figure[/b]" in text


def test_words_of_others_are_one_line_and_command_no_terminal() -> None:
    console = screen(file=io.StringIO(), width=80)
    with Progress(Scenario(vehicles=1), console) as progress:
        progress.event("reject", {"vehicle": "\x1b[2Jnobody", "reason": "no\ncar-01  val mIoU 1.000"})
        progress.event("taken_back", {"vehicle": "car-01", "round": 2})
    first, second = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert first == "rejected a message of \\x1b[2Jnobody: no\\ncar-01  val mIoU 1.000"
    assert second == "car-01's turn does not count: it was for the worse"


def test_who_was_unlike_the_others_is_told_and_counted() -> None:
    console = screen(file=io.StringIO(), width=80)
    with Progress(Scenario(vehicles=1), console) as progress:
        for name in ("left-out", "doubted", "shortened"):
            progress.event(name, {"vehicle": "car-01"})
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert told.count("car-01 ") == 3 and "left out of this turn" in told
    result = _result("car-01", "car-02") | {"scored_by": "vehicles"}
    result["vehicles"]["car-02"] |= {"left_out": 3, "doubted": 0}
    text = _shown(result_table(result), 120)
    assert "left out: car-02 (3 turns)" in text and "each vehicle has scored itself" in text


def test_every_console_of_the_command_is_made_in_one_place() -> None:
    making = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "fleet").rglob("*.py")
        if re.search(r"\bConsole\(|from rich.table", path.read_text())
    ]
    assert making == ["fleet/show/screen.py"]


@pytest.mark.parametrize("encoding", ["iso-8859-1", "ascii", "utf-8"])
def test_showing_never_ends_a_command(encoding: str) -> None:
    """A finished run is shown again, in a folder whose name is no text, on a terminal of another encoding."""
    program = (
        "import sys; from protocol.showing import show_anything; show_anything()\n"
        "from fleet.show.screen import screen; console = screen()\n"
        "console.print('mIoU – θ 東京', sys.argv[1])\n"
        "print(sys.argv[1], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, b"runs/\xff[x]"],
        env={**environment(), "PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert b"mIoU" in done.stdout and b"[x]" in done.stdout and b"[x]" in done.stderr
