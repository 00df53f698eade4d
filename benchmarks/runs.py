"""Runs of a benchmark: several at once as processes of their own, kept on disk, none done twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from fleet.job import RESULT_NAME
from fleet.launch import SCENARIO_NAME
from fleet.scenario import load_scenario, save_scenario

_LOG_NAME = "launch.log"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One `blackfleet launch`."""

    folder: Path
    settings: Mapping[str, Any] = field(repr=False)
    """Over the embedded defaults, by scenario key."""

    @property
    def is_complete(self) -> bool:
        """Whether its result is there."""
        return (self.folder / RESULT_NAME).exists()

    def result(self) -> dict[str, Any]:
        """The content of `result.json`."""
        content: dict[str, Any] = json.loads((self.folder / RESULT_NAME).read_text())
        return content


def finish(runs: Sequence[Run], *, jobs: int) -> None:
    """Do what is not complete yet, `jobs` runs at a time; one that was cut off is resumed.

    Raises:
        SystemExit: a folder holds a run of other settings, or a run failed; the message says where to look.
    """
    for run in runs:
        _check_same(run)
    console = Console(stderr=True)
    todo = [run for run in runs if not run.is_complete]
    console.print(f"{len(runs) - len(todo)} of {len(runs)} runs are complete already")

    def work(numbered: tuple[int, Run]) -> None:
        number, run = numbered
        began = time.monotonic()
        _launch(run)
        result = run.result()
        console.print(
            f"{number}/{len(todo)} {run.folder.name}: mIoU {result['mean_local_miou']:.3f}, "
            f"{(time.monotonic() - began) / 60:.1f} min"
        )

    with ThreadPoolExecutor(jobs) as pool:
        for _ in pool.map(work, enumerate(todo, start=1)):
            pass


def _check_same(run: Run) -> None:
    """A kept run is only good for the settings that it was made with."""
    path = run.folder / SCENARIO_NAME
    if not path.exists():
        return
    if save_scenario(load_scenario(path, {})) != save_scenario(load_scenario(None, run.settings)):
        raise SystemExit(f"{run.folder} holds a run of other settings; remove it, or choose another folder")


def _launch(run: Run) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    begun = (run.folder / SCENARIO_NAME).exists()
    wanted = run.folder / "wanted.yaml"
    wanted.write_text(save_scenario(load_scenario(None, run.settings)), encoding="utf-8")
    command = [sys.executable, "-m", "fleet.cli", "launch", "--run-dir", str(run.folder)]
    command += ["--resume"] if begun else ["--scenario", str(wanted)]
    with (run.folder / _LOG_NAME).open("ab") as log:
        # What torch and ONNX Runtime take beyond a run's own threads would slow its neighbours.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False)
    if done.returncode or not run.is_complete:
        raise SystemExit(f"{run.folder} ended with exit code {done.returncode}; see {_LOG_NAME} there")
