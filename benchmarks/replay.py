"""Whether replay at the cloud helps: runs that differ in first-order steps alone, at equal uplink.

`python -m benchmarks.replay --data-root CAMVID RUNS` prints a Markdown table and one JSON line. A run whose
folder in RUNS is complete is not run again. The last setting is the control: as many steps as two replay
steps make, all of them on the features just uploaded.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cloud_server.config import FirstOrderConfig, LocalLossConfig
from cloud_server.run_log import LOG_NAME
from fleet.job import RESULT_NAME
from fleet.launch import SCENARIO_NAME, launch
from fleet.progress import format_bytes
from fleet.scenario import DatasetPart, EvaluationPart, Scenario

_EPOCHS = 3
_SETTINGS = ((0, 1), (1, 1), (2, 1), (0, 3))
"""(replay steps, factor of the epochs)."""
_COLUMNS = ("algorithm", "replay steps", "epochs", "validation mIoU", "local mIoU", "OOD mIoU")
_SCORES = ("validation_miou", "mean_local_miou", "mean_ood_miou")


def main() -> None:
    """Run the benchmark and print its table and JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay", description=__doc__)
    parser.add_argument("runs", type=Path, help="folder for the run folders")
    parser.add_argument("--data-root", required=True, help="folder of CamVid")
    parser.add_argument("--algorithms", default="blackfed-v2,blackfleet", help="separated by commas")
    parser.add_argument("--image-size", default="128x96", help="width x height that encoders see")
    parser.add_argument("--seeds", default="0,1", help="separated by commas")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    rows = [
        _row(
            options.runs,
            options.data_root,
            options.image_size,
            algorithm,
            replay_steps,
            factor * _EPOCHS,
            seeds,
        )
        for algorithm in options.algorithms.split(",")
        for replay_steps, factor in _SETTINGS
    ]
    columns = (*_COLUMNS, "up", "frames seen", "time")
    print("| " + " | ".join(columns) + " |")
    print("|---" * 3 + "|---:" * (len(columns) - 3) + "|")
    for row in rows:
        scores = [
            f"{row[name]:.3f} ({', '.join(f'{x:.3f}' for x in row[f'{name}_by_seed'])})" for name in _SCORES
        ]
        wall_s = round(row["wall_s"])
        cells = [row["algorithm"], str(row["replay_steps"]), str(row["epochs"]), *scores]
        cells += [format_bytes(row["uplink_bytes"]), f"{row['frames_seen']:,.0f}"]
        print("| " + " | ".join([*cells, f"{wall_s // 60}:{wall_s % 60:02d}"]) + " |")
    print(json.dumps({"benchmark": "replay", "rows": rows}))


def _row(
    runs: Path,
    data_root: str,
    image_size: str,
    algorithm: str,
    replay_steps: int,
    epochs: int,
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Means over seeds."""
    scenarios = [
        Scenario(
            algorithm=algorithm,
            vehicles=3,
            rounds=4,
            seed=seed,
            cores=1,
            image_size=image_size,
            dataset=DatasetPart(name="camvid", root=data_root),
            first_order=FirstOrderConfig(epochs=epochs, replay_steps=replay_steps),
            local_loss=LocalLossConfig(warm_up_epochs=10, epochs=3),
            evaluation=EvaluationPart(overlays=0),
        )
        for seed in seeds
    ]
    results = [
        _result(scenario, runs / f"{algorithm}-replay{replay_steps}-epochs{epochs}-seed{scenario.seed}")
        for scenario in scenarios
    ]
    row: dict[str, Any] = {"algorithm": algorithm, "replay_steps": replay_steps, "epochs": epochs}
    for name in _SCORES:
        row[f"{name}_by_seed"] = [result[name] for result in results]
    for name in (*_SCORES, "uplink_bytes", "frames_seen", "wall_s"):
        row[name] = statistics.mean(result[name] for result in results)
    return row


def _result(scenario: Scenario, folder: Path) -> dict[str, Any]:
    """`result.json` of the run, and the mean validation mIoU of the weights that serve the vehicles."""
    if not (folder / RESULT_NAME).exists():
        resume = (folder / SCENARIO_NAME).exists()
        launch(scenario, folder, resume=resume, console=Console(quiet=True))
    result: dict[str, Any] = json.loads((folder / RESULT_NAME).read_text())
    events = [json.loads(line) for line in (folder / LOG_NAME).read_text().splitlines()]
    curve = [event for event in events if event["event"] == "curve"]
    return {**result, "validation_miou": curve[-1]["val_miou"]}


if __name__ == "__main__":
    main()
