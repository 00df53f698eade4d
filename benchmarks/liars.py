"""What a vehicle with wrong labels does to the others, and what the cloud can do about it.

`python -m benchmarks.liars` runs four vehicles that share CamVid's frames block by block. In half of the runs
the labels of the last one's train frames are wrong, each class named as another. Prints a table and one JSON
line: the mean mIoU of the other three on their own test frames, with and without the liar, for each algorithm
and, for fedavg, each way to average. Finished runs are kept in `--out`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
from rich.console import Console
from rich.table import Table

from benchmarks.camvid import camvid_folder
from benchmarks.options import read_seeds, some_of
from benchmarks.runs import Run, finish
from datasets.labels import CAMVID
from fleet.broker import MEMORY_BUS
from fleet.compare.spread import sample_deviation
from fleet.frames.partition_record import PARTITION_NAME

VEHICLES = 4
LIAR = "car-04"
TARGET = 0.02
"""Of mIoU, below a run without the liar."""
_SHIFT = 5
"""Class k is called k + 5, modulo their number."""
_FEDAVG = {"algorithm": "fedavg"}
METHODS: dict[str, dict[str, Any]] = {
    "fedavg": _FEDAVG,
    "fedavg, median": {**_FEDAVG, "federated.aggregate": "median"},
    "fedavg, trimmed-mean": {**_FEDAVG, "federated.aggregate": "trimmed-mean"},
    "fedavg, krum": {**_FEDAVG, "federated.aggregate": "krum"},
    "fedavg, norm bound": {**_FEDAVG, "federated.norm_bound": 1.0},
    "blackfleet": {"algorithm": "blackfleet"},
    "blackfleet, one encoder": {
        "algorithm": "blackfleet",
        "sharing.encoder": "weights",
        "local_loss.warm_up_epochs": 0,
        "blackfleet.serving": "latest",
    },
    "blackfed-v2": {"algorithm": "blackfed-v2"},
    "split": {"algorithm": "split"},
}
"""What each method puts over the settings that all share, by scenario key."""


def main() -> None:
    """Run what is missing, and print table and JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.liars", description=__doc__)
    parser.add_argument("--data-root", type=Path, help="CamVid's folder (default: $BLACKFLEET_CAMVID)")
    parser.add_argument("--image-size", default="128x96", help="default: 128x96")
    parser.add_argument("--seeds", type=read_seeds, default="0,1,2", help="default: 0,1,2")
    parser.add_argument(
        "--methods", type=some_of(METHODS), default=";".join(METHODS), help="some of them, with semicolons"
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each (default 2)")
    parser.add_argument("--out", type=Path, default=Path("runs/liars"), help="folder of the runs")
    options = parser.parse_args()
    root = (options.data_root or camvid_folder()).resolve()
    place = options.out / options.image_size
    honest = _runs(options, place / "honest", root)
    finish(list(honest.values()), jobs=options.jobs)
    lied_about = train_frames(next(iter(honest.values())).folder)
    lying = _runs(options, place / "lying", with_lies(root, place / "data", lied_about))
    finish(list(lying.values()), jobs=options.jobs)
    if any(train_frames(run.folder) != lied_about for run in (*honest.values(), *lying.values())):
        raise SystemExit(f"runs in {place} give {LIAR} other train frames; remove them")
    report = {
        method: summarise(*([runs[method, seed] for seed in options.seeds] for runs in (honest, lying)))
        for method in options.methods
    }
    title = f"a liar of {VEHICLES}, seeds {', '.join(map(str, options.seeds))}"
    Console(width=110).print(table(report, title))
    print(json.dumps({"benchmark": "liars", "what": title, "methods": report}))


def _runs(options: argparse.Namespace, folder: Path, root: Path) -> dict[tuple[str, int], Run]:
    common = {
        "dataset.name": "camvid",
        "dataset.root": str(root.resolve()),
        "dataset.partition": "uniform",
        "vehicles": VEHICLES,
        "image_size": options.image_size,
        "cores": 1,
        "broker": MEMORY_BUS,
        "rounds": 8,
        "first_order.epochs": 4,
        "evaluation.overlays": 0,
    }
    return {
        (method, seed): Run(
            folder=folder / f"{method.replace(', ', '-').replace(' ', '-')}-{seed}",
            settings={**common, **METHODS[method], "seed": seed},
        )
        for method in options.methods
        for seed in options.seeds
    }


def train_frames(run_folder: Path) -> list[str]:
    """Keys of the frames that the liar trains on."""
    keys: list[str] = json.loads((run_folder / PARTITION_NAME).read_text())["vehicles"][LIAR]["train"]
    return keys


def with_lies(root: Path, folder: Path, keys: Sequence[str]) -> Path:
    """CamVid in `folder`, as links, but wrong labels of the frames `keys`."""
    lies = {f"{key.rpartition('/')[2]}.png" for key in keys}
    classes = CAMVID.num_classes
    for source in sorted(path for path in root.rglob("*") if path.is_file()):
        target = folder / source.relative_to(root)
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.parent.name.endswith("annot") and source.name in lies:
            label_HW = cv2.imread(str(source), cv2.IMREAD_UNCHANGED)
            assert label_HW is not None, source
            known = label_HW < classes
            label_HW[known] = (label_HW[known] + _SHIFT) % classes
            cv2.imwrite(str(target), label_HW)
        else:
            target.symlink_to(source)
    return folder


def summarise(honest: Sequence[Run], lying: Sequence[Run]) -> dict[str, Any]:
    """Means over seeds of the honest vehicles' mIoU, with the sample standard deviation of the loss."""
    pairs = [(_score(one), _score(other)) for one, other in zip(honest, lying, strict=True)]
    vehicle = [run.result()["vehicles"][LIAR] for run in lying]
    return {
        "without_liar": statistics.fmean(before for before, _ in pairs),
        "with_liar": statistics.fmean(after for _, after in pairs),
        "lost": statistics.fmean(before - after for before, after in pairs),
        "lost_std": sample_deviation([before - after for before, after in pairs]),
        "left_out": statistics.fmean(entry["left_out"] for entry in vehicle),
    }


def _score(run: Run) -> float:
    vehicles = run.result()["vehicles"]
    return statistics.fmean(entry["local_miou"] for name, entry in vehicles.items() if name != LIAR)


def table(report: Mapping[str, Mapping[str, float]], title: str) -> Table:
    """The report for people."""
    rows = Table(title=title, caption=f"at most {TARGET} is wanted, of a way that heeds liars")
    for column in ("method", "mIoU without", "with the liar", "lost", "rounds without it"):
        rows.add_column(column, justify="left" if column == "method" else "right")
    for method, entry in report.items():
        rows.add_row(
            method,
            f"{entry['without_liar']:.3f}",
            f"{entry['with_liar']:.3f}",
            f"{entry['lost']:.3f} ± {entry['lost_std']:.3f}",
            f"{entry['left_out']:.1f}",
        )
    return rows


if __name__ == "__main__":
    main()
