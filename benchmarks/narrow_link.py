"""blackfleet against BlackFed over MQTT: at equal time, at equal bytes, and over the narrowest link.

`python -m benchmarks.narrow_link` runs three vehicles with CamVid's sequences over a broker: `blackfed-v2`
and `blackfleet` as they are by default, and a frugal `blackfleet`: few frames at 3 bits in a single round. It
prints the milestones of their curves, then what each needed for its final test mIoU, and last one JSON line.
Runs go one after the other, as time counts; finished ones are kept in `--out`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.camvid import camvid_folder
from benchmarks.options import read_seeds
from benchmarks.runs import Run, finish
from cloud_server.storage.recorders import LOG_NAME
from fleet.compare import milestones
from fleet.compare.spread import sample_deviation
from fleet.report.data import read_training

BYTES_TARGET = 1 / 100
"""Of what `blackfed-v2` sends in training, for at least its final test mIoU."""
REFERENCE, FRUGAL = "blackfed-v2", "blackfleet, frugal"
RUNS: dict[str, dict[str, Any]] = {
    REFERENCE: {"algorithm": REFERENCE},
    "blackfleet": {"algorithm": "blackfleet"},
    FRUGAL: {
        "algorithm": "blackfleet",
        "rounds": 1,
        "coding.bits": 3,
        "uploads.train_frames": 24,
        "uploads.val_frames": 1,
        "uploads.train_labels": "logits",
        "blackfleet.serving": "latest",
        "first_order.epochs": 100,
        "local_loss.warm_up_epochs": 60,
    },
}
"""What each puts over the embedded defaults, by scenario key."""


def main() -> None:
    """Run the benchmark and print its tables and JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.narrow_link", description=__doc__)
    parser.add_argument("--data-root", type=Path, help="CamVid's folder (default: $BLACKFLEET_CAMVID)")
    parser.add_argument("--seeds", type=read_seeds, default="0,1", help="default: 0,1")
    parser.add_argument("--out", type=Path, default=Path("runs/narrow-link"), help="folder of the runs")
    options = parser.parse_args()
    root = str((options.data_root or camvid_folder()).resolve())
    runs = {
        (name, seed): Run(
            folder=options.out / f"{name.replace(', ', '-')}-{seed}",
            settings={
                "dataset.name": "camvid",
                "dataset.root": root,
                "vehicles": 3,
                "seed": seed,
                "evaluation.overlays": 0,
                **changes,
            },
        )
        for seed in options.seeds
        for name, changes in RUNS.items()
    }
    finish(list(runs.values()), jobs=1)
    curves = {key: read_training(run.folder / LOG_NAME, 3) for key, run in runs.items()}
    content = milestones.find_milestones([name for name in RUNS if name != FRUGAL], REFERENCE, curves)
    console = Console(width=140)
    console.print(_milestone_table(content))
    report = summarise(
        {name: [runs[name, seed].result() for seed in options.seeds] for name in RUNS},
        {name: [curves[name, seed][-1] for seed in options.seeds] for name in RUNS},
    )
    console.print(table(report))
    print(json.dumps({"benchmark": "narrow_link", "milestones": content["algorithms"], "runs": report}))


def summarise(
    results: Mapping[str, Sequence[Mapping[str, Any]]], ends: Mapping[str, Sequence[milestones.Point]]
) -> dict[str, dict[str, Any]]:
    """Test mIoU over the seeds, and what training alone has sent and taken, as means over the seeds."""
    sent = {name: statistics.fmean(point.sent_bytes for point in points) for name, points in ends.items()}
    return {
        name: {
            "local_miou_mean": statistics.fmean(result["mean_local_miou"] for result in entries),
            "local_miou_std": sample_deviation([result["mean_local_miou"] for result in entries]),
            "training_bytes": round(sent[name]),
            "bytes_share": sent[name] / sent[REFERENCE],
            "training_s": statistics.fmean(point.wall_s for point in ends[name]),
        }
        for name, entries in results.items()
    }


def _milestone_table(content: Mapping[str, Any]) -> Table:
    shown = Table(title="training alone", caption=milestones.caption(content))
    for column in milestones.COLUMNS:
        shown.add_column(column, justify="left" if column == "algorithm" else "right")
    for row in milestones.rows(content):
        shown.add_row(*row)
    return shown


def table(report: Mapping[str, Mapping[str, Any]]) -> Table:
    """Test mIoU at the end, and what it cost."""
    shown = Table(title="at the end", caption=f"target: at most {BYTES_TARGET:g} of {REFERENCE}'s bytes")
    for column in ("run", "local mIoU (test)", "training, kB", f"of {REFERENCE}", "training, s"):
        shown.add_column(column, justify="left" if column == "run" else "right")
    for name, entry in report.items():
        shown.add_row(
            name,
            f"{entry['local_miou_mean']:.3f} ± {entry['local_miou_std']:.3f}",
            f"{entry['training_bytes'] / 1e3:,.0f}",
            f"1/{1 / entry['bytes_share']:.1f}",
            f"{entry['training_s']:.0f}",
        )
    return shown


if __name__ == "__main__":
    main()
