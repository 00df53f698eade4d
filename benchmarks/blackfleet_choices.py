"""The choices inside blackfleet: weighting by loss maps or not, and which weights serve a vehicle.

`python -m benchmarks.blackfleet_choices` prints a table and last one JSON line. A choice
is made on mIoU on validation frames, with the weights that serve each vehicle after the last round; test mIoU
is reported beside it and decides nothing. Each weighting is trained once a seed; what the ways of serving
score is found out afterwards (`serving_scores`). Runs that are complete in the folder are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.camvid import camvid_folder
from benchmarks.options import read_seeds
from benchmarks.runs import Run, finish
from benchmarks.serving_scores import score_servings
from cloud_server.config import read_config
from edge_client.host import read_host_config
from fleet.compare.spread import sample_deviation
from fleet.show.progress import format_bytes
from protocol.plans.blackfleet import SERVINGS

_WIDTH = 110
_SCORES = {"val": "val mIoU", "test": "test local", "ood": "test OOD"}
_COLUMNS = ("weight power", "serving", *_SCORES.values(), "up", "down")


def main() -> None:
    """Run what is missing and print table and JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.blackfleet_choices", description=__doc__)
    parser.add_argument("--data-root", type=Path, help="CamVid's folder (default: $BLACKFLEET_CAMVID)")
    parser.add_argument("--folder", type=Path, default=Path("runs/blackfleet-choices"), help="for the runs")
    parser.add_argument("--seeds", type=read_seeds, default="0,1", help="comma-separated (default 0,1)")
    parser.add_argument(
        "--weight-powers", default="0,0.5", help="comma-separated; 0 = unweighted (default 0,0.5)"
    )
    parser.add_argument("--vehicles", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--warm-up-epochs", type=int, default=20)
    parser.add_argument("--local-epochs", type=int, default=5)
    parser.add_argument("--foo-epochs", type=int, default=5)
    options = parser.parse_args()
    try:
        powers = [float(word) for word in options.weight_powers.split(",")]
    except ValueError as error:
        parser.error(str(error))
    shared = {
        "algorithm": "blackfleet",
        "vehicles": options.vehicles,
        "rounds": options.rounds,
        "dataset.name": "camvid",
        "dataset.root": str((options.data_root or camvid_folder()).resolve()),
        "local_loss.warm_up_epochs": options.warm_up_epochs,
        "local_loss.epochs": options.local_epochs,
        "first_order.epochs": options.foo_epochs,
        "evaluation.overlays": 0,
    }
    table_of_runs = {
        power: [
            Run(
                folder=options.folder / f"power{power:g}-seed{seed}",
                settings={**shared, "seed": seed, "local_loss.weight_power": power},
            )
            for seed in options.seeds
        ]
        for power in powers
    }
    finish([run for runs in table_of_runs.values() for run in runs], jobs=1)
    measured = {power: [measure(run) for run in runs] for power, runs in table_of_runs.items()}
    seeds = ", ".join(map(str, options.seeds))
    table = Table(title=f"blackfleet on CamVid, {options.vehicles} vehicles, seeds {seeds}")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column == "serving" else "right")
    rows = [summarise(power, serving, measured[power]) for power in powers for serving in SERVINGS]
    for row in rows:
        table.add_row(*_cells(row))
    Console(width=_WIDTH).print(table)
    print(json.dumps({"benchmark": "blackfleet_choices", "seeds": options.seeds, "rows": rows}))


def measure(run: Run) -> dict[str, Any]:
    """Scores by serving, and bytes, of a complete run."""
    result = run.result()
    hosts = [read_host_config(path) for path in sorted((run.folder / "hosts").glob("host-*.json"))]
    return {
        "servings": score_servings(read_config(run.folder / "cloud.json"), hosts, run.folder),
        "uplink_bytes": result["uplink_bytes"],
        "downlink_bytes": result["downlink_bytes"],
    }


def summarise(power: float, serving: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, for mIoU with the sample standard deviation (0 for one seed) and each run's value."""
    summary: dict[str, Any] = {"weight_power": power, "serving": serving}
    for split in _SCORES:
        values = [run["servings"][serving][split] for run in runs]
        summary[f"{split}_miou_mean"] = statistics.fmean(values)
        summary[f"{split}_miou_std"] = sample_deviation(values)
        summary[f"{split}_miou_by_seed"] = values
    for key in ("uplink_bytes", "downlink_bytes"):
        summary[key] = round(statistics.fmean(run[key] for run in runs))
    return summary


def _cells(row: dict[str, Any]) -> list[str]:
    scores = (f"{row[f'{split}_miou_mean']:.3f} ± {row[f'{split}_miou_std']:.3f}" for split in _SCORES)
    traffic = (format_bytes(row[key]) for key in ("uplink_bytes", "downlink_bytes"))
    return [f"{row['weight_power']:g}", row["serving"], *scores, *traffic]


if __name__ == "__main__":
    main()
