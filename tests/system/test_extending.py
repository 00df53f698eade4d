"""docs/extending.md as a reader follows it: its package lies outside the repository, its commands are run."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from page_fixtures import blocks, write_page_files
from process_fixtures import ROOT, WAIT_S

pytestmark = pytest.mark.timeout(600)

_COMMAND_S = 3 * WAIT_S
"""A whole run at the page's size, on a machine that does other things besides."""
PROGRAMS = {"python": [sys.executable], "blackfleet": [sys.executable, "-m", "fleet.cli"]}


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the page's commands have been run, each with its output in a file."""
    folder = tmp_path_factory.mktemp("reader")
    write_page_files(folder)
    # The product is installed for a reader; here it is on the path, after what the page says.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    [script] = blocks("sh")
    for number, line in enumerate(script.splitlines()):
        words = shlex.split(line)
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            environment[name] = os.pathsep.join((value, str(ROOT)))
            continue
        done = subprocess.run(
            [*PROGRAMS[words[0]], *words[1:]],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        (folder / f"{number}-{words[1]}.out").write_text(done.stdout)
    return folder


def test_every_file_is_written_and_none_is_of_the_repository(followed: Path) -> None:
    written = {path.name for path in (followed / "my_cars").glob("*.py")}
    assert written == {
        "encoders.py", "networks.py", "frames.py", "estimators.py", "learners.py", "algorithms.py"
    }  # fmt: skip
    assert ROOT not in followed.parents


def test_run_has_learnt_by_all_of_them(followed: Path) -> None:
    run = followed / "runs" / "yard"
    result = json.loads((run / "result.json").read_text())
    assert result["algorithm"] == "my_cars.algorithms:row"
    assert result["dataset"] == "my_cars.frames:yard"
    assert set(result["vehicles"]) == {"car-01", "car-02"}
    assert set(result["classes"]) == {"ground", "crate", "wall"}
    assert all(0 < vehicle["local_miou"] <= 1 for vehicle in result["vehicles"].values())
    assert all({"ask", "query"} < set(v["uplink_bytes_by_type"]) for v in result["vehicles"].values())
    encoder = json.loads((run / "bundles" / "my_cars.encoders@build" / "encoder.json").read_text())
    assert encoder["feature_shape"] == [6, 6, 8]
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    turns = [event for event in events if event["event"] == "turn_done" and event["kind"] == "train"]
    # One bit a batch tells no loss; the estimator's two queries a batch do.
    told = [(turn["round"], turn["loss"] is not None) for turn in turns]
    assert told == [(1, False), (1, False), (2, True), (2, True)]


def test_finished_run_is_scored_and_reported_with_its_own_classes(followed: Path) -> None:
    [scores] = followed.glob("*-evaluate.out")
    assert "crate" in scores.read_text()
    page = (followed / "runs" / "yard" / "report.html").read_text()
    assert "crates in two yards" in page and "my_cars.algorithms:row" in page
