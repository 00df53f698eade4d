"""`--mlflow URI`: a run that has ended, kept where MLflow's client and pages find it.

Parameters are its settings, metrics its curves and scores with the times at which they were told, artefacts
its files and overlays, and the model is what `blackfleet export` makes of it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console

from cloud_server.run.results import RESULT_NAME
from cloud_server.storage.recorders import LOG_NAME
from fleet.errors import OperatorError
from fleet.frames.allocation import evenly_spaced
from fleet.run.folder import SCENARIO_NAME, kept_scenario
from fleet.run.job import read_object
from fleet.run.resuming import flat
from protocol.errors import Mistake

LOCAL = "local"
"""What `--mlflow` says for a store of one's own, beside the runs."""
EXPERIMENT = "blackfleet"
_FILES = (SCENARIO_NAME, RESULT_NAME, LOG_NAME, "partition.json", "report.html")
_MOST_VEHICLES = 50
"""Whose own curves are kept; of a larger fleet the means are."""
_MOST_OVERLAYS = 32
_MOST_AT_ONCE = 100
"""Of parameters, and metrics, in a request."""
_LONGEST_PARAMETER = 6000
_SCORES = (
    "initial_local_miou",
    "mean_local_miou",
    "mean_ood_miou",
    "fleet_miou",
    "mean_source_miou",
    "wall_s",
)
_OF_A_ROUND = ("loss", "val_miou", "uplink_bytes", "downlink_bytes", "steps")

Point = tuple[str, float, int, int]
"""Name, value, milliseconds since 1970, step."""


class MlflowStore:
    """A tracking store, tried when it is made: a run of hours must not end at one that isn't there."""

    def __init__(self, uri: str, run_folder: Path) -> None:
        """`uri` is MLflow's, or `local`: an SQLite file beside the run folder.

        Raises:
            OperatorError: the package mlflow is missing, or the store can't be used.
        """
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        try:
            import mlflow
            import mlflow.onnx
        except ImportError as error:
            raise OperatorError(
                "--mlflow needs the package mlflow: pip install 'blackfleet[mlflow]'"
            ) from error
        self._mlflow = mlflow
        beside = run_folder.absolute().parent
        is_local = uri == LOCAL
        self.uri = f"sqlite:///{beside / 'mlflow.db'}" if is_local else uri
        try:
            if is_local:
                beside.mkdir(parents=True, exist_ok=True)
            self._client = mlflow.MlflowClient(self.uri)
            found = self._client.get_experiment_by_name(EXPERIMENT)
            self._experiment = (
                found.experiment_id
                if found
                else self._client.create_experiment(
                    EXPERIMENT, artifact_location=(beside / "mlflow-artifacts").as_uri() if is_local else None
                )
            )
        except (mlflow.exceptions.MlflowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise OperatorError(f"--mlflow: the store can't be used: {reason}") from error

    def keep(self, run_folder: Path, console: Console) -> str:
        """Write a run that has ended into the store; returns its id there.

        Raises:
            OperatorError: the store doesn't take it, or the folder holds no run that has ended.
        """
        result = read_object(run_folder / RESULT_NAME)
        settings = flat(kept_scenario(run_folder))
        try:
            run_id = self._write(run_folder, settings, result, console)
        except self._mlflow.exceptions.MlflowException as error:
            raise OperatorError(f"MLflow does not take the run: {str(error).splitlines()[0]}") from error
        # Not where: a store's URI may hold a password.
        console.print(f"run {run_id} of MLflow's experiment {EXPERIMENT}", soft_wrap=True)
        return run_id

    def _write(
        self, run_folder: Path, settings: dict[str, Any], result: dict[str, Any], console: Console
    ) -> str:
        from mlflow.entities import Metric, Param

        points = list(_points(run_folder / LOG_NAME, result))
        times = [time_ms for _, _, time_ms, _ in points]
        tags = {"blackfleet.version": metadata.version("blackfleet")}
        run_id: str = self._client.create_run(
            self._experiment, start_time=min(times), tags=tags, run_name=run_folder.absolute().name
        ).info.run_id
        parameters = [
            Param(key, str(value)[:_LONGEST_PARAMETER])
            for key, value in settings.items()
            if value is not None
        ]
        for start in range(0, len(parameters), _MOST_AT_ONCE):
            self._client.log_batch(run_id, params=parameters[start : start + _MOST_AT_ONCE])
        metrics = [Metric(*point) for point in points]
        for start in range(0, len(metrics), _MOST_AT_ONCE):
            self._client.log_batch(run_id, metrics=metrics[start : start + _MOST_AT_ONCE])
        for name in _FILES:
            if (run_folder / name).is_file():
                self._client.log_artifact(run_id, str(run_folder / name))
        overlays = sorted(map(str, (run_folder / "overlays").glob("*/*.png")))
        for picture in map(Path, evenly_spaced(overlays, _MOST_OVERLAYS)):
            self._client.log_artifact(run_id, str(picture), f"overlays/{picture.parent.name}")
        self._log_model(run_folder, run_id, console)
        self._client.set_terminated(run_id, "FINISHED", end_time=max(times))
        return run_id

    def _log_model(self, run_folder: Path, run_id: str, console: Console) -> None:
        """The model of the best vehicle; where a run can't be exported, a line says so."""
        import onnx

        from fleet.model.export import export_model

        with tempfile.TemporaryDirectory() as folder:
            try:
                exported = export_model(run_folder, Path(folder) / "model.onnx", console=console)
            except Mistake as error:
                console.print(f"no model in MLflow: {error}", soft_wrap=True)
                return
            model = onnx.load(exported.model)
        self._mlflow.set_tracking_uri(self.uri)
        with self._mlflow.start_run(run_id=run_id):
            self._mlflow.onnx.log_model(
                model, name="model", pip_requirements=["onnx", "onnxruntime", "numpy"]
            )


def _points(log: Path, result: dict[str, Any]) -> Iterator[Point]:
    """Every point of every curve, and the scores at the end."""
    own_curves = len(result["vehicles"]) <= _MOST_VEHICLES
    last_ms, last_round = 0, result["rounds"]
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # the torn line of a killed process
        last_ms = round(event["time"] * 1000)
        if event["event"] == "curve":
            for key in _OF_A_ROUND:
                if event.get(key) is not None:
                    yield key, float(event[key]), last_ms, event["round"]
        elif event["event"] == "validation" and own_curves and event["miou"] is not None:
            yield f"val_miou/{event['vehicle']}", event["miou"], last_ms, event["round"]
    for key in _SCORES:
        if result.get(key) is not None:
            yield key, float(result[key]), last_ms, last_round
    for name, iou in result["classes"].items():
        if iou is not None:
            yield f"iou/{name}", iou, last_ms, last_round
    for vehicle, entry in result["vehicles"].items() if own_curves else ():
        for key in ("local_miou", "ood_miou"):
            if entry[key] is not None:
                yield f"{key}/{vehicle}", entry[key], last_ms, last_round
