"""`blackfleet launch`: from a scenario to a run folder with a result.

Claims the folder, settles data and partition, hands the run to its algorithm's runner, and at the end draws
overlays and prints the table.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from cloud_server.algorithms.table import algorithm_row
from fleet.errors import OperatorError
from fleet.run.allocation import allocate, open_data, source_test_frames, write_partition
from fleet.run.centralized import run_centralized
from fleet.run.checks import check_runnable, check_start
from fleet.run.fleet_run import run_fleet
from fleet.run.job import RESULT_NAME, Job
from fleet.run.overlays import draw_overlays
from fleet.run.progress import result_table
from fleet.run.start import FOLDER_NAME as START_FOLDER
from fleet.run.start import Start
from fleet.scenario import Scenario, load_scenario, save_scenario
from protocol.atomic import write_bytes_atomic

SCENARIO_NAME = "scenario.yaml"
_LOCK_NAME = ".lock"


def default_run_folder(scenario: Scenario) -> Path:
    """`runs/<time>-<algorithm>-<dataset>` below the current folder."""
    moment = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{moment}-{scenario.algorithm}-{scenario.dataset.name}"


def launch(scenario: Scenario, run_folder: Path, *, resume: bool, console: Console) -> dict[str, Any]:
    """Run a scenario to its end; returns the content of `result.json`. A complete run is not run again.

    Raises:
        OperatorError, ValueError, OSError: see each part; one readable line.
        KeyboardInterrupt: the user stopped the run; it can be resumed.
    """
    check_runnable(scenario)
    scenario = _claim(scenario, run_folder, resume=resume)
    with held(run_folder):
        return _launch(scenario, run_folder, resume=resume, console=console)


@contextlib.contextmanager
def held(run_folder: Path) -> Iterator[None]:
    """Keep a run folder to this process: two launchers in it would spoil each other's run.

    Raises:
        OperatorError: another process holds it.
    """
    with (run_folder / _LOCK_NAME).open("w") as lock:
        try:
            # The system lets go of it however this process ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OperatorError(
                f"another launcher is at work in {run_folder}; wait for its end, or choose another folder"
            ) from error
        yield


def _launch(scenario: Scenario, run_folder: Path, *, resume: bool, console: Console) -> dict[str, Any]:
    try:
        start = _settle_start(scenario, run_folder, resume=resume)
        source = open_data(scenario, run_folder, console)
        tested = source_test_frames(scenario, start.spec, source) if start else ()
        shares = allocate(scenario, source, source_keys=tested)
        write_partition(run_folder, source, shares)
    except (ValueError, OSError):
        if not resume:
            # Nothing has begun: the mended command must find the folder free.
            (run_folder / SCENARIO_NAME).unlink(missing_ok=True)
        raise
    if not (run_folder / RESULT_NAME).exists():
        run = run_fleet if algorithm_row(scenario.algorithm).build else run_centralized
        run(
            Job(
                scenario=scenario,
                run_folder=run_folder,
                source=source,
                shares=shares,
                console=console,
                start=start,
            )
        )
    result: dict[str, Any] = json.loads((run_folder / RESULT_NAME).read_text())
    draw_overlays(source, shares, run_folder, per_vehicle=scenario.evaluation.overlays)
    console.print(result_table(result))
    console.print(f"results in {run_folder}")
    return result


def _settle_start(scenario: Scenario, run_folder: Path, *, resume: bool) -> Start | None:
    """The run's own copy of its start: what becomes of the folder it was taken from makes no difference."""
    if scenario.start is None:
        return None
    own = run_folder / START_FOLDER
    if resume and own.exists():
        start = Start.load(own)
    else:
        start = Start.load(Path(scenario.start))
        check_start(scenario, start.spec)
        start = start.copy(own)
    return start


def _claim(scenario: Scenario, run_folder: Path, *, resume: bool) -> Scenario:
    """Make the folder this run's own, with its exact configuration; on resume take the one that is there."""
    path = run_folder / SCENARIO_NAME
    if resume:
        if not path.is_file():
            raise OperatorError(f"{run_folder} holds no run to resume ({SCENARIO_NAME} is missing)")
        kept = load_scenario(path, {})
        # Where the broker is does not belong to what the run computes.
        return msgspec.structs.replace(kept, broker=scenario.broker, broker_port=scenario.broker_port)
    if path.exists():
        raise OperatorError(f"{run_folder} holds a run already; add --resume, or choose another folder")
    # Thread counts are part of what makes a run repeatable: the file says how many cores it was planned for.
    scenario = msgspec.structs.replace(scenario, cores=scenario.core_count)
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(path, save_scenario(scenario).encode())
    except OSError as error:
        raise OperatorError(
            f"can't write to {run_folder}: {error.strerror}; choose another folder"
        ) from error
    return scenario
