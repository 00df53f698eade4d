"""A run that has ended in MLflow, read back by its own client."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from fleet.cli.mlflow_run import EXPERIMENT, LOCAL, MlflowStore, _points
from fleet.errors import OperatorError
from fleet.scenario import load_scenario, save_scenario

RESULT = {
    "rounds": 2,
    "mean_local_miou": 0.4,
    "mean_ood_miou": None,
    "wall_s": 12.5,
    "classes": {"road": 0.8, "train": None},
    "vehicles": {"car-01": {"local_miou": 0.4, "ood_miou": None}},
}
EVENTS = [
    {"event": "validation", "time": 10.0, "vehicle": "car-01", "round": 1, "miou": 0.2, "best": 0.2},
    {"event": "curve", "time": 10.5, "round": 1, "loss": 0.9, "val_miou": 0.2, "uplink_bytes": 5, "steps": 3},
    {"event": "validation", "time": 20.0, "vehicle": "car-01", "round": 2, "miou": None, "best": 0.2},
    {"event": "result", "time": 21.0, "mean_local_miou": 0.4},
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "mine"
    (folder / "overlays" / "car-01").mkdir(parents=True)
    (folder / "overlays" / "car-01" / "a.png").write_bytes(b"picture")
    (folder / "scenario.yaml").write_text(save_scenario(load_scenario(None, {"vehicles": 1, "rounds": 2})))
    (folder / "result.json").write_text(json.dumps(RESULT))
    (folder / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in EVENTS) + '{"torn')
    return folder


def test_points_are_those_of_log_and_result(run: Path) -> None:
    assert list(_points(run / "log.jsonl", RESULT)) == [
        ("val_miou/car-01", 0.2, 10000, 1),
        ("loss", 0.9, 10500, 1),
        ("val_miou", 0.2, 10500, 1),
        ("uplink_bytes", 5.0, 10500, 1),
        ("steps", 3.0, 10500, 1),
        ("mean_local_miou", 0.4, 21000, 2),
        ("wall_s", 12.5, 21000, 2),
        ("iou/road", 0.8, 21000, 2),
        ("local_miou/car-01", 0.4, 21000, 2),
    ]


def test_without_the_package_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(OperatorError, match=r"pip install 'blackfleet\[mlflow\]'"):
        MlflowStore(LOCAL, tmp_path / "run")


def test_mlflow_s_own_client_reads_the_run(run: Path, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="no mlflow: pip install 'blackfleet[mlflow]'")
    said = io.StringIO()
    store = MlflowStore(LOCAL, run)
    run_id = store.keep(run, Console(file=said, width=300))
    client = mlflow.MlflowClient(f"sqlite:///{run.parent}/mlflow.db")
    kept = client.get_run(run_id)
    assert kept.info.status == "FINISHED" and kept.info.run_name == "mine"
    assert (kept.info.start_time, kept.info.end_time) == (10000, 21000)
    assert kept.data.params["vehicles"] == "1" and kept.data.params["first_order.rate"] == "0.002"
    assert kept.data.metrics["mean_local_miou"] == 0.4
    history = client.get_metric_history(run_id, "val_miou/car-01")
    assert [(metric.value, metric.step, metric.timestamp) for metric in history] == [(0.2, 1, 10000)]
    files = {file.path for file in client.list_artifacts(run_id)}
    assert files == {"scenario.yaml", "result.json", "log.jsonl", "overlays"}
    assert client.get_experiment_by_name(EXPERIMENT) is not None
    assert "no model in MLflow: " in said.getvalue()  # of this folder, which was made by hand
    with pytest.raises(OperatorError, match="--mlflow: the store can't be used: "):
        MlflowStore("nonsense://x", run)
