"""`blackfleet evaluate`: scores a folder of predicted label images against the ground truth of a data set."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import track

from cloud_server.algorithms.base import PREDICTED
from datasets.frame import DatasetError
from datasets.ground_truth import GroundTruth
from datasets.natural import natural_key
from datasets.readers.cityscapes import CityscapesGroundTruth
from evaluation.errors import EvaluationError
from evaluation.ground_truth import open_ground_truth
from evaluation.instances import InstanceScores, are_weighted
from evaluation.official import compare_with_official
from evaluation.official_python import find_official_python
from evaluation.predictions import PredictionError, read_prediction_ids
from evaluation.scores import ConfusionMatrix, ScoreTable, summarize
from fleet.cli.evaluation_report import EvaluationReport, print_report
from fleet.run.folder import SCENARIO_NAME
from fleet.scenario import load_scenario
from fleet.show.screen import screen
from protocol.atomic import write_json_atomic

EVALUATION_NAME = "evaluation.json"

_FAULTS_NAMED = 5


def evaluate_predictions(
    predictions: Path,
    ground_truth: Path,
    *,
    dataset: str | None = None,
    official: bool = False,
    official_python: Path | None = None,
    console: Console | None = None,
) -> EvaluationReport:
    """Score every predicted label image in `predictions` against its ground truth.

    Args:
        predictions: a run folder (its `predictions/<vehicle>/` is scored), or any folder of label images
            named `<frame key>*.png`, searched with its subfolders. Where some names end in `labelIds.png`,
            only those count. The images hold label ids, not trainIds, at the size of the ground truth.
        ground_truth: a data set's root; of Cityscapes its gtFine/ or any part of it, too.
        dataset: a row of `datasets.catalog.DATASETS`; default: what the run says, else as the ground truth
            looks.
        official: also run the official Cityscapes evaluation and compare.
        official_python: the interpreter that runs it; default: see `find_official_python`.
        console: where progress is shown; default: nowhere.

    Raises:
        EvaluationError: no predictions, or some are without or with another size than their ground truth,
            unreadable, of unknown ids or twice there; or `official` with another data set.
        EvaluationError: a folder is missing, or the official tool is not there or failed.
        DatasetError: the ground truth is missing or malformed.
    """
    python = find_official_python(official_python) if official else None
    if not predictions.is_dir():
        raise EvaluationError(f"no predictions: {predictions} is not a folder")
    run_predictions = _run_predictions(predictions)
    truth = open_ground_truth(ground_truth, dataset or _dataset_of_run(predictions))
    if official and not isinstance(truth, CityscapesGroundTruth):
        raise EvaluationError(
            "the official evaluation knows only Cityscapes labels, got a "
            f"{truth.label_space.name} ground truth"
        )

    files = _match(run_predictions or predictions, truth)
    tally = _Tally(truth, console)
    for key, path in tally.track(files.items()):
        tally.add(key, path, _vehicle_of(path, run_predictions))
    summary = tally.summary(len(files))
    comparison = None
    if python is not None and isinstance(truth, CityscapesGroundTruth):
        comparison = compare_with_official(files, truth, summary, python=python)
    return EvaluationReport(
        dataset=truth.label_space.name,
        weighted=are_weighted(truth.label_space),
        frames=len(files),
        ground_truth_frames=len(truth.keys),
        summary=summary,
        vehicles={v: summarize(m)["mean_iou"] for v, m in sorted(tally.vehicles.items())},
        official=comparison,
    )


def evaluate_models(
    run_folder: Path,
    ground_truth: Path,
    *,
    dataset: str | None = None,
    official: bool = False,
    official_python: Path | None = None,
    console: Console | None = None,
) -> dict[str, EvaluationReport]:
    """Score what each served model of a run has predicted on the run's test split, by vehicle.

    `ground_truth` is the data set's root; where the run's test split is a folder of its own, the labels there
    are taken. The other arguments and what is raised: see `evaluate_predictions`.
    """
    inside = run_folder / PREDICTED["fleet"]
    if not inside.is_dir():
        return {}
    return {
        folder.name: evaluate_predictions(
            folder,
            _test_split_folder(run_folder) or ground_truth,
            dataset=dataset or _dataset_of_run(run_folder),
            official=official,
            official_python=official_python,
            console=console,
        )
        for folder in sorted(inside.iterdir(), key=lambda folder: natural_key(folder.name))
        if folder.is_dir()
    }


def _test_split_folder(run_folder: Path) -> Path | None:
    """The folder that a run has its test split from, None where that is a part of its data set."""
    path = run_folder / SCENARIO_NAME
    if not path.is_file():
        return None
    return load_scenario(path, {}).dataset.test_folder


class _Tally:
    """Counts of all frames so far, and what was wrong with the others."""

    def __init__(self, truth: GroundTruth, console: Console | None) -> None:
        self._truth = truth
        self._console = console
        self._confusion = ConfusionMatrix(truth.label_space)
        self._instances = InstanceScores(truth.label_space) if are_weighted(truth.label_space) else None
        self._frames_with_instances = 0
        self._faults: list[str] = []
        self.vehicles: dict[str, ConfusionMatrix] = {}

    def track(self, files: Iterable[tuple[str, Path]]) -> Iterable[tuple[str, Path]]:
        if self._console is None:
            return files
        return track(list(files), description="scoring", console=self._console, transient=True)

    def add(self, key: str, path: Path, vehicle: str | None) -> None:
        space = self._truth.label_space
        try:
            true = self._truth.load(key)
            prediction_ids_HW = read_prediction_ids(path, space)
        except (DatasetError, PredictionError) as error:
            self._faults.append(str(error))
            return
        if prediction_ids_HW.shape != true.ids_HW.shape:
            (height, width), (true_height, true_width) = prediction_ids_HW.shape, true.ids_HW.shape
            self._faults.append(
                f"{path} is {width}x{height} pixels, but its ground truth is {true_width}x{true_height}"
            )
            return
        if true.instance_HW is not None and self._instances is not None:
            try:
                self._instances.add(true.ids_HW, prediction_ids_HW, true.instance_HW)
            except EvaluationError as error:
                self._faults.append(f"ground truth of {key}: {error}")
                return
            self._frames_with_instances += 1
        frame = ConfusionMatrix(space)
        frame.add(space.to_train_ids(true.ids_HW), space.to_train_ids(prediction_ids_HW))
        self._confusion.merge(frame)
        if vehicle is not None:
            self.vehicles.setdefault(vehicle, ConfusionMatrix(space)).merge(frame)

    def summary(self, frames: int) -> ScoreTable:
        """Return the scores; instance scores only if every frame has instance ids."""
        _raise_faults(self._faults, f"of {frames} predictions can't be scored")
        complete = self._frames_with_instances == frames
        return summarize(self._confusion, self._instances if complete else None)


def _run_predictions(folder: Path) -> Path | None:
    """The predictions inside a run folder, None if `folder` isn't one."""
    inside = folder / "predictions"
    return inside if inside.is_dir() else None


def _vehicle_of(path: Path, run_predictions: Path | None) -> str | None:
    if run_predictions is None or path.parent == run_predictions:
        return None
    return path.relative_to(run_predictions).parts[0]


def _dataset_of_run(folder: Path) -> str | None:
    path = folder / "result.json"
    if not path.is_file():
        return None
    try:
        name: str | None = json.loads(path.read_text(encoding="utf-8")).get("dataset")
    except (OSError, ValueError, AttributeError) as error:
        raise EvaluationError(f"{path} is not a run's result: {error}") from error
    return name


def _match(folder: Path, truth: GroundTruth) -> dict[str, Path]:
    """Find the prediction of each frame, by frame key in key order."""
    images = sorted(path for path in folder.rglob("*.png") if not path.name.startswith("."))
    named = [path for path in images if path.name.endswith("labelIds.png")]
    if not images:
        raise EvaluationError(f"no predictions in {folder}: expected label images <frame>_pred_labelIds.png")
    files: dict[str, Path] = {}
    faults: list[str] = []
    for path in named or images:
        key = truth.key_of(path.stem)
        if path.stem.endswith("labelTrainIds"):
            faults.append(f"{path} holds trainIds by its name, expected label ids")
        elif key is None or key not in truth.keys:
            faults.append(f"{path} has no {truth.label_space.name} ground truth")
        elif key in files:
            faults.append(f"{path} predicts the same frame as {files[key]}")
        else:
            files[key] = path
    _raise_faults(faults, f"of {len(named or images)} predictions can't be matched")
    return {key: files[key] for key in sorted(files, key=natural_key)}


def _raise_faults(faults: list[str], what: str) -> None:
    if faults:
        rest = len(faults) - _FAULTS_NAMED
        named = "; ".join(faults[:_FAULTS_NAMED]) + (f"; and {rest} more" if rest > 0 else "")
        raise EvaluationError(f"{len(faults)} {what}: {named}")


def run_evaluate(
    predictions: Path,
    ground_truth: Path,
    dataset: str | None,
    official: bool,
    output: Path | None,
    official_python: Path | None = None,
) -> int:
    """Score, print and write evaluation.json (into `predictions`, or to `output`); return the exit code.

    0: done; 1: done, but the official evaluation says otherwise.

    Raises:
        EvaluationError, DatasetError: see `evaluate_predictions`.
        OSError: the result can't be written.
    """
    console = screen()
    report = evaluate_predictions(
        predictions,
        ground_truth,
        dataset=dataset,
        official=official,
        official_python=official_python,
        console=console,
    )
    models = evaluate_models(
        predictions,
        ground_truth,
        dataset=dataset,
        official=official,
        official_python=official_python,
        console=console,
    )
    report = replace(report, models=models)
    print_report(report, console)
    path = output or predictions / EVALUATION_NAME
    if path.is_dir():
        path = path / EVALUATION_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, report.to_dict(), sync=False)
    console.print(f"written to {path}", soft_wrap=True, highlight=False)
    compared = [one.official for one in (report, *report.models.values()) if one.official is not None]
    return 0 if all(one.agrees for one in compared) else 1
