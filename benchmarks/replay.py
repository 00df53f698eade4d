"""Whether replay at the cloud helps: runs that differ in first-order steps alone, at equal uplink.

`python -m benchmarks.replay` prints a Markdown table and last one JSON line. The last setting of an algorithm
is the control: as many steps as two replay steps make, all of them on the features just uploaded. Runs that
are complete in the folder are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.camvid import camvid_folder
from benchmarks.options import read_seeds
from benchmarks.runs import Run, finish
from fleet.show.progress import format_bytes

_EPOCHS = 3
_SETTINGS = ((0, 1), (1, 1), (2, 1), (0, 3))
"""(replay steps, factor of the epochs)."""
_COLUMNS = ("algorithm", "replay steps", "epochs", "validation mIoU", "local mIoU", "OOD mIoU")
_SCORES = ("validation_miou", "mean_local_miou", "mean_ood_miou")


def main() -> None:
    """Run what is missing; print table and JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay", description=__doc__)
    parser.add_argument("--data-root", type=Path, help="folder of CamVid (default: where the tests find it)")
    parser.add_argument("--folder", type=Path, default=Path("runs/replay"), help="for the runs")
    parser.add_argument("--algorithms", default="blackfed-v2,blackfleet", help="comma-separated")
    parser.add_argument("--image-size", default="128x96", help="what encoders see (default 128x96)")
    parser.add_argument("--seeds", type=read_seeds, default="0,1", help="comma-separated (default 0,1)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default 1)")
    options = parser.parse_args()
    root = options.data_root or camvid_folder()
    table = {
        (algorithm, replay_steps, factor * _EPOCHS): [
            _run(options, root, algorithm, replay_steps, factor * _EPOCHS, seed) for seed in options.seeds
        ]
        for algorithm in options.algorithms.split(",")
        for replay_steps, factor in _SETTINGS
    }
    finish([run for runs in table.values() for run in runs], jobs=options.jobs)
    rows = [_row(*key, runs) for key, runs in table.items()]
    columns = (*_COLUMNS, "up", "frames seen")
    print("| " + " | ".join(columns) + " |")
    print("|---" * 3 + "|---:" * (len(columns) - 3) + "|")
    for row in rows:
        scores = [
            f"{row[name]:.3f} ({', '.join(f'{x:.3f}' for x in row[f'{name}_by_seed'])})" for name in _SCORES
        ]
        cells = [row["algorithm"], str(row["replay_steps"]), str(row["epochs"]), *scores]
        cells += [format_bytes(row["uplink_bytes"]), f"{row['frames_seen']:,.0f}"]
        print("| " + " | ".join(cells) + " |")
    print(json.dumps({"benchmark": "replay", "rows": rows}))


def _run(
    options: argparse.Namespace, root: Path, algorithm: str, replay_steps: int, epochs: int, seed: int
) -> Run:
    settings = {
        "algorithm": algorithm,
        "vehicles": 3,
        "rounds": 4,
        "seed": seed,
        "cores": 1,
        "image_size": options.image_size,
        "dataset.name": "camvid",
        "dataset.root": str(root),
        "first_order.epochs": epochs,
        "first_order.replay_steps": replay_steps,
        "local_loss.warm_up_epochs": 10,
        "local_loss.epochs": 3,
        "local_loss.weight_power": 0,
        "evaluation.overlays": 0,
    }
    name = f"{algorithm}-replay{replay_steps}-epochs{epochs}-seed{seed}"
    return Run(folder=options.folder / name, settings=settings)


def _row(algorithm: str, replay_steps: int, epochs: int, runs: Sequence[Run]) -> dict[str, Any]:
    """Means over seeds, and each seed's scores."""
    results = [{**run.result(), "validation_miou": run.val_miou()} for run in runs]
    row: dict[str, Any] = {"algorithm": algorithm, "replay_steps": replay_steps, "epochs": epochs}
    for name in _SCORES:
        row[f"{name}_by_seed"] = [result[name] for result in results]
    for name in (*_SCORES, "uplink_bytes", "frames_seen", "wall_s"):
        row[name] = statistics.mean(result[name] for result in results)
    return row


if __name__ == "__main__":
    main()
