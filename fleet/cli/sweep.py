"""`blackfleet compare`: algorithms side by side, on the same frames from the same start, seed by seed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from cloud_server.algorithms.table import algorithm_row
from cloud_server.run.results import RESULT_NAME
from cloud_server.storage.recorders import LOG_NAME
from fleet.compare.equal import check_budget, find_equal
from fleet.compare.milestones import DEFAULT_REFERENCE, find_milestones
from fleet.compare.tables import COMPARISON_NAME, comparison_tables, markdown, summarise
from fleet.errors import OperatorError
from fleet.report.data import read_training
from fleet.run.folder import (
    LEFT_BY_COMPARISONS,
    LEFT_BY_RUNS,
    SCENARIO_NAME,
    readable_by_owner_alone,
    settled,
    with_absolute_paths,
    write_scenario,
)
from fleet.run.job import read_object
from fleet.run.resuming import BROKER_KEYS, differences
from fleet.scenario import Scenario, load_scenario
from protocol.atomic import write_bytes_atomic, write_json_atomic
from protocol.doors import file_name
from protocol.errors import SettingError
from protocol.plans.local_loss import LocalLossPlan

MARKDOWN_NAME = "compare.md"
_OF_A_RUN = BROKER_KEYS | {"algorithm", "seed"}
"""What the runs of one comparison may differ in."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    algorithm: str
    seed: int
    folder: Path

    @property
    def is_complete(self) -> bool:
        return (self.folder / SCENARIO_NAME).exists() and (self.folder / RESULT_NAME).exists()


def parse_algorithms(text: str) -> tuple[str, ...]:
    """Names from `a,b,c`.

    Raises:
        OperatorError: none is given, one is unknown or named twice.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        try:
            algorithm_row(name)
        except SettingError as error:
            raise OperatorError(f"--algorithms: {error}") from error
    return _checked(names, "--algorithms")


def with_controls(algorithms: Sequence[str], scenario: Scenario, console: Console) -> tuple[str, ...]:
    """The algorithms; each that loss feedback changes is followed by the same without it, unless named."""
    local, names = scenario.way(LocalLossPlan), list[str]()
    for name in algorithms:
        names.append(name)
        control = algorithm_row(name).control
        if control and control not in algorithms and local.weight_power > 0 and local.epochs > 0:
            names.append(control)
            console.print(f"beside {name} runs {control}: what feedback buys (--no-control leaves it out)")
    return tuple(names)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from `0,1`.

    Raises:
        OperatorError: none is given, one is no whole number from 0 or named twice.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if not (word.isascii() and word.isdigit()):
            raise OperatorError(f"--seeds must be whole numbers from 0, separated by commas, got {word!r}")
    return _checked(tuple(int(word) for word in words), "--seeds")


def compare(
    scenario: Scenario,
    algorithms: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    *,
    reference: str | None = None,
    equal: str | None = None,
    console: Console,
) -> dict[str, Any]:
    """Run every algorithm with every seed, those that are not complete yet; returns `compare.json`'s content.

    Writes `compare.json`, `compare.md` and `report.html` into `folder`, beside a run folder for each run. The
    scenario's own algorithm and seed play no part. `reference`, one of `algorithms`, is the one whose quality
    the others are to reach; None = blackfed-v2 if it is there, else the first. `equal`: a budget at which the
    runs are cut besides, of `fleet.compare.equal.BUDGETS`.

    Raises:
        Mistake, OSError: the folder holds another comparison, or see `launch`.
        Interrupted, KeyboardInterrupt: the user stopped it; calling again goes on.
    """
    # Here, for a mistake in an option needs neither torch nor charts.
    from fleet.report.page import write_report
    from fleet.run.checks import check_runnable

    reference = _reference(algorithms, reference)
    if equal is not None:
        check_budget(equal, algorithms, network_learns=scenario.network.learns)
    for algorithm in algorithms:
        # What the last of them refuses must not be found out after the runs of the others.
        check_runnable(msgspec.structs.replace(scenario, algorithm=algorithm))
    with readable_by_owner_alone():
        scenario = _claim(scenario, folder)
    runs = [
        _Run(algorithm=algorithm, seed=seed, folder=folder / f"{file_name(algorithm)}-seed{seed}")
        for seed in seeds
        for algorithm in algorithms
    ]
    _run_all(scenario, runs, folder, console)
    entries = [
        {
            "algorithm": run.algorithm,
            "seed": run.seed,
            "folder": run.folder.name,
            "result": read_object(run.folder / RESULT_NAME),
        }
        for run in sorted(runs, key=lambda run: algorithms.index(run.algorithm))
    ]
    curves = {
        (run.algorithm, run.seed): read_training(run.folder / LOG_NAME, scenario.vehicles) for run in runs
    }
    content: dict[str, Any] = {
        "algorithms": list(algorithms),
        "seeds": list(seeds),
        "runs": entries,
        "summary": summarise(algorithms, entries),
        "milestones": find_milestones(algorithms, reference, curves),
    }
    if equal is not None:
        content["equal"] = find_equal(equal, algorithms, curves)
    write_json_atomic(folder / COMPARISON_NAME, content)
    write_bytes_atomic(folder / MARKDOWN_NAME, markdown(content).encode())
    report = write_report(folder)
    console.print(*comparison_tables(content), sep="\n")
    console.print(
        f"comparison in {folder}: tables in {MARKDOWN_NAME}, pictures and curves in {report.name}",
        soft_wrap=True,
    )
    return content


def _reference(algorithms: Sequence[str], given: str | None) -> str:
    if given is None:
        return DEFAULT_REFERENCE if DEFAULT_REFERENCE in algorithms else algorithms[0]
    if given not in algorithms:
        raise OperatorError(
            f"--reference {given!r} is not among the algorithms compared ({', '.join(algorithms)}); name "
            f"one of them, or add it to --algorithms"
        )
    return given


def _run_all(scenario: Scenario, runs: Sequence[_Run], folder: Path, console: Console) -> None:
    from fleet.run.launch import launch

    open_runs = [run for run in runs if not run.is_complete]
    if len(open_runs) < len(runs):
        console.print(f"{len(runs) - len(open_runs)} of {len(runs)} runs are complete already")
    began = time.monotonic()
    for number, run in enumerate(open_runs):
        console.rule(
            f"run {len(runs) - len(open_runs) + number + 1} of {len(runs)}: {run.algorithm}, seed {run.seed}"
            + _left(time.monotonic() - began, number, len(open_runs) - number)
        )
        wanted = msgspec.structs.replace(scenario, algorithm=run.algorithm, seed=run.seed)
        if scenario.dataset.is_rendered and scenario.dataset.root is None:
            data = msgspec.structs.replace(scenario.dataset, root=str(folder / "data" / f"seed{run.seed}"))
            wanted = msgspec.structs.replace(wanted, dataset=data)
        launch(wanted, run.folder, resume=(run.folder / SCENARIO_NAME).exists(), console=console)


def _left(elapsed_s: float, done: int, left: int) -> str:
    if not done:
        return ""
    left_s = round(elapsed_s / done * left)
    return f", about {left_s // 60}:{left_s % 60:02d} left"


def _claim(scenario: Scenario, folder: Path) -> Scenario:
    """Make the folder this comparison's own, or check that it is; returns what its runs share."""
    path = folder / SCENARIO_NAME
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise OperatorError(f"{folder} holds something else than a comparison; choose another folder")
        scenario = settled(scenario)
        folder.mkdir(parents=True, exist_ok=True)
        write_scenario(folder, scenario)
        return scenario
    runs_own = sorted(
        path.name for path in folder.iterdir() if path.name in LEFT_BY_RUNS - LEFT_BY_COMPARISONS
    )
    if runs_own:
        raise OperatorError(
            f"{folder} holds a run ({', '.join(runs_own)}) and no comparison; choose another --compare-dir"
        )
    kept = with_absolute_paths(load_scenario(path, {}))
    scenario = with_absolute_paths(msgspec.structs.replace(scenario, cores=scenario.cores or kept.cores))
    changes = differences(kept, scenario, free=_OF_A_RUN)
    if changes:
        raise OperatorError(
            f"{folder} holds a comparison of another scenario: {'; '.join(changes)}; give the same options "
            f"again, or another --compare-dir"
        )
    return scenario


def _checked(values: tuple[Any, ...], option: str) -> tuple[Any, ...]:
    if not values:
        raise OperatorError(f"{option} names nothing; give at least one, for instance {option} 0,1")
    for value in values:
        if values.count(value) > 1:
            raise OperatorError(f"{option} names {value} twice")
    return values
