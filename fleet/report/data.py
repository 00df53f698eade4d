"""What a report is made from: the files of a run folder or of a comparison folder, as far as they are there.

Only `result.json` (or `compare.json`) must be there. Whatever else is missing is missing in the report.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cloud_server.run.results import RESULT_NAME
from cloud_server.storage.recorders import LOG_NAME
from datasets.catalog import find_dataset
from datasets.class_file import CLASSES_NAME, read_class_file
from datasets.entry import DatasetEntry
from datasets.labels import LabelSpace
from fleet.compare.milestones import Point
from fleet.compare.spread import sample_deviation
from fleet.compare.tables import COMPARISON_NAME, forwards_per_frame
from fleet.errors import OperatorError
from fleet.frames.partition_record import PARTITION_NAME
from fleet.run.folder import SCENARIO_NAME
from fleet.run.job import read_object
from fleet.scenario import DatasetPart, Scenario, load_scenario
from protocol.errors import Mistake


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """How far a run was when it committed a training stage; None where nothing was known yet."""

    frames_seen: int
    sent_bytes: int
    """Up and down together."""
    wall_s: float
    loss: float | None
    val_miou: float | None
    validated: int
    """Vehicles that `val_miou` is the mean over; 0 where the log doesn't say."""
    steps: int | None = None
    """First-order steps of networks; None where the log doesn't say."""
    forward_equivalents: float | None = None
    """What all vehicles have computed, in forward passes of a frame; None where the log doesn't say."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One algorithm with one seed."""

    algorithm: str
    seed: int
    folder: Path
    result: Mapping[str, Any]
    """`result.json`'s content; empty for a run without one."""
    points: tuple[CurvePoint, ...]
    """By frames seen; empty for a run whose log has no curve."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and sample standard deviation over seeds; the latter is 0 for one seed."""

    mean: float
    deviation: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One algorithm's row; None where no run gives the value. Bytes, frames, queries, seconds: of one run."""

    algorithm: str
    local_miou: Spread | None
    ood_miou: Spread | None
    fleet_miou: Spread | None
    """Of runs that have a test split: on all of it, mean over the vehicles scored on it."""
    untrained_miou: float | None
    initial_source_miou: float | None
    source_miou: Spread | None
    """Of runs that began from a pretrained start, like the one before: on frames of its source."""
    uplink_bytes: float | None
    downlink_bytes: float | None
    forwards_per_frame: float | None
    """What the vehicles have computed in turns of learning, in forward passes for each train frame."""
    steps: float | None
    frames_seen: float | None
    queries: float | None
    wall_s: float | None
    finished: int
    """Runs that have a result."""
    planned: int
    """Runs that should have one."""


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """All numbers of a report."""

    folder: Path
    is_comparison: bool
    algorithms: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]
    scenario: Scenario | None
    """Of the first run that has a readable one; a comparison's runs differ in algorithm and seed only."""
    partition: Mapping[str, Mapping[str, Any]]
    """`partition.json`'s vehicles, of the first run that has one; empty if none has."""
    milestones: Mapping[str, Any] | None
    """`compare.json`'s; None for a single run."""
    equal: Mapping[str, Any] | None
    """`compare.json`'s; None where nothing was cut at equal budgets."""
    label_space: LabelSpace

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return str(next((run.result["dataset"] for run in self.runs if run.result.get("dataset")), "unknown"))

    @property
    def vehicles(self) -> tuple[str, ...]:
        """Ids of all vehicles that any result or the partition names."""
        named = [vehicle for run in self.runs for vehicle in run.result.get("vehicles") or {}]
        return tuple(dict.fromkeys([*self.partition, *named]))

    def runs_of(self, algorithm: str) -> list[Run]:
        """The runs of one algorithm, also those without a result."""
        return [run for run in self.runs if run.algorithm == algorithm]

    def values(self, algorithm: str, read: Callable[[Mapping[str, Any]], Any]) -> list[float]:
        """What `read` finds in the results of an algorithm, seed by seed; what isn't there is left out."""
        found = []
        for run in self.runs_of(algorithm):
            try:
                value = read(run.result)
            except (KeyError, TypeError, IndexError, AttributeError):
                continue
            if isinstance(value, int | float) and math.isfinite(value):
                found.append(float(value))
        return found

    def mean(self, algorithm: str, read: Callable[[Mapping[str, Any]], Any]) -> float | None:
        """The mean of `values`, None if there are none."""
        spread = spread_of(self.values(algorithm, read))
        return None if spread is None else spread.mean

    def summary(self, algorithm: str) -> Summary:
        """The algorithm's row of the summary table."""
        runs = self.runs_of(algorithm)
        return Summary(
            algorithm=algorithm,
            local_miou=spread_of(self.values(algorithm, lambda result: result["mean_local_miou"])),
            ood_miou=spread_of(self.values(algorithm, lambda result: result["mean_ood_miou"])),
            fleet_miou=spread_of(self.values(algorithm, lambda result: result["fleet_miou"])),
            untrained_miou=self.mean(algorithm, lambda result: result["initial_local_miou"]),
            initial_source_miou=self.mean(algorithm, lambda result: result["initial_source_miou"]),
            source_miou=spread_of(self.values(algorithm, lambda result: result["mean_source_miou"])),
            uplink_bytes=self.mean(algorithm, lambda result: result["uplink_bytes"]),
            downlink_bytes=self.mean(algorithm, lambda result: result["downlink_bytes"]),
            forwards_per_frame=self.mean(algorithm, forwards_per_frame),
            steps=self.mean(algorithm, lambda result: result["steps"]),
            frames_seen=self.mean(algorithm, lambda result: result["frames_seen"]),
            queries=self.mean(
                algorithm, lambda result: sum(entry["queries"] for entry in result["vehicles"].values())
            ),
            wall_s=self.mean(algorithm, lambda result: result["wall_s"]),
            finished=sum(1 for run in runs if run.result),
            planned=max(len(runs), len(self.seeds)),
        )

    def confusion(self, algorithm: str) -> np.ndarray[tuple[int, int], np.dtype[np.int64]] | None:
        """Pixels by [true class, predicted class], summed over seeds; None where no run has counted them."""
        size = self.label_space.num_classes
        total = np.zeros((size, size), np.int64)
        found = False
        for run in self.runs_of(algorithm):
            try:
                counts = np.asarray(run.result.get("confusion"), np.int64)
            except (TypeError, ValueError, OverflowError):
                continue
            if counts.shape == (size, size):
                total += counts
                found = True
        return total if found else None


def spread_of(values: Sequence[float]) -> Spread | None:
    """Mean and sample standard deviation; None for no values."""
    if not values:
        return None
    return Spread(mean=float(np.mean(values)), deviation=sample_deviation(values))


def collect(folder: Path) -> ReportData:
    """Read a run folder or a comparison folder.

    Raises:
        OperatorError: it is neither, or its `result.json` or `compare.json` can't be read.
    """
    if (folder / COMPARISON_NAME).is_file():
        content = read_object(folder / COMPARISON_NAME)
        runs = _comparison_runs(folder, content)
        if not runs:
            raise OperatorError(f"{folder / COMPARISON_NAME} names no runs; run `blackfleet compare` again")
        named = [name for name in content.get("algorithms") or [] if isinstance(name, str)]
        seeds = [seed for seed in content.get("seeds") or [] if isinstance(seed, int)]
        return _assemble(folder, runs, algorithms=named, seeds=seeds, comparison=content)
    if (folder / RESULT_NAME).is_file():
        result = read_object(folder / RESULT_NAME)
        if not isinstance(result.get("algorithm"), str):
            raise OperatorError(f"{folder / RESULT_NAME} names no algorithm: it is no result of a run")
        run = _run(result["algorithm"], result.get("seed"), folder, result)
        return _assemble(folder, [run], algorithms=[], seeds=[], comparison=None)
    if not folder.is_dir():
        raise OperatorError(f"no folder {folder}; give the folder of a run or a comparison")
    raise OperatorError(
        f"{folder} holds neither {RESULT_NAME} nor {COMPARISON_NAME}; give the folder of a finished run or "
        "comparison"
    )


def _assemble(
    folder: Path,
    runs: Sequence[Run],
    *,
    algorithms: Sequence[str],
    seeds: Sequence[int],
    comparison: Mapping[str, Any] | None,
) -> ReportData:
    scenario = _first(_scenario(run.folder) for run in runs)
    dataset = _first(run.result.get("dataset") for run in runs)
    return ReportData(
        folder=folder,
        is_comparison=comparison is not None,
        algorithms=tuple(dict.fromkeys([*algorithms, *(run.algorithm for run in runs)])),
        seeds=tuple(dict.fromkeys([*seeds, *(run.seed for run in runs)])),
        runs=tuple(runs),
        scenario=scenario,
        partition=_first(read_partition(run.folder) for run in runs) or {},
        milestones=(comparison or {}).get("milestones"),
        equal=(comparison or {}).get("equal"),
        label_space=_label_space(dataset, [run.folder for run in runs]),
    )


def dataset_entry(name: str | None) -> DatasetEntry | None:
    """The data set that the results name; None where it is not known here."""
    try:
        return find_dataset(name or "")
    except Mistake:
        return None


def _label_space(dataset: str | None, run_folders: Iterable[Path]) -> LabelSpace:
    """The classes that runs have kept, or those of the data set that the results name; while there are none
    yet, those of the default."""
    for path in (folder / CLASSES_NAME for folder in run_folders):
        if path.is_file():
            return read_class_file(path)
    entry = dataset_entry(dataset)
    return (entry and entry.label_space) or DatasetPart().label_space


def _comparison_runs(folder: Path, content: Mapping[str, Any]) -> list[Run]:
    entries = content.get("runs")
    runs = []
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("algorithm"), str):
            name = entry.get("folder")
            run_folder = folder / (
                name if isinstance(name, str) else f"{entry['algorithm']}-seed{entry.get('seed')}"
            )
            result = entry.get("result")
            runs.append(
                _run(
                    entry["algorithm"],
                    entry.get("seed"),
                    run_folder,
                    result if isinstance(result, dict) else {},
                )
            )
    return runs


def _run(algorithm: str, seed: Any, folder: Path, result: Mapping[str, Any]) -> Run:
    return Run(
        algorithm=algorithm,
        seed=seed if isinstance(seed, int) else 0,
        folder=folder,
        result=result,
        points=read_curve(folder / LOG_NAME),
    )


def read_curve(path: Path) -> tuple[CurvePoint, ...]:
    """The curve events of a run's log, one a stage, by frames seen; torn and foreign lines are skipped."""
    # A stage that started over is logged again: the later line counts.
    by_stage: dict[Any, CurvePoint] = {}
    for event in _events(path, "curve"):
        try:
            by_stage[event["stage"]] = CurvePoint(
                frames_seen=int(event["frames_seen"]),
                sent_bytes=_sent_bytes(event),
                wall_s=float(event["wall_s"]),
                loss=_number(event.get("loss")),
                val_miou=_number(event.get("val_miou")),
                validated=int(event.get("validated", 0)),
                steps=event.get("steps"),
                forward_equivalents=_number(event.get("forward_equivalents")),
            )
        except (ValueError, KeyError, TypeError):
            continue
    return tuple(sorted(by_stage.values(), key=lambda point: point.frames_seen))


def read_training(path: Path, vehicles: int) -> tuple[Point, ...]:
    """The curve of training alone, from where all `vehicles` have been validated.

    Empty where the log doesn't say where training began.
    """
    start = None
    for event in _events(path, "training"):
        try:
            start = (_sent_bytes(event), float(event["wall_s"]))
        except (ValueError, KeyError, TypeError):
            continue
    if start is None:
        return ()
    return tuple(
        Point(
            sent_bytes=point.sent_bytes - start[0],
            wall_s=point.wall_s - start[1],
            val_miou=point.val_miou,
            steps=point.steps,
            forward_equivalents=point.forward_equivalents,
        )
        for point in read_curve(path)
        if point.val_miou is not None and point.validated >= vehicles
    )


def _events(path: Path, name: str) -> Iterator[dict[str, Any]]:
    """A log's events of one name; torn and foreign lines are skipped."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        if f'"{name}"' not in line:
            continue
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("event") == name:
            yield event


def _sent_bytes(event: Mapping[str, Any]) -> int:
    return int(event["uplink_bytes"]) + int(event["downlink_bytes"])


def _scenario(run_folder: Path) -> Scenario | None:
    try:
        return load_scenario(run_folder / SCENARIO_NAME, {})
    except Mistake:
        return None


def read_partition(run_folder: Path) -> dict[str, Any] | None:
    """`partition.json`'s vehicles; None where there is no such file, or it can't be read."""
    try:
        vehicles = read_object(run_folder / PARTITION_NAME)["vehicles"]
    except (OperatorError, KeyError):
        return None
    return vehicles if isinstance(vehicles, dict) else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _first(values: Iterable[Any]) -> Any:
    return next((value for value in values if value), None)
