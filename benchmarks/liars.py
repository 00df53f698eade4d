"""What a vehicle that lies does to the others, and what the cloud can do about it.

`python -m benchmarks.liars` runs four vehicles that share CamVid's frames, frame by frame or (`--partition
city`) drive by drive, without a liar and with one: the last vehicle lies as each of `--lies` says. Prints a
table and one JSON line: the mean mIoU of the other three on their own test frames, with and without the liar,
for each algorithm and each defence, and how often whom was left out. Finished runs are kept in `--out`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.camvid import camvid_folder
from benchmarks.lies import LIES, OF_FEATURES, OF_WEIGHTS, ON_DISK, tell, with_lies
from benchmarks.options import read_seeds, some_of
from benchmarks.runs import Run, finish
from fleet.broker import MEMORY_BUS
from fleet.compare.spread import sample_deviation
from fleet.frames.partition_record import PARTITION_NAME

VEHICLES = 4
LIAR = "car-04"
TARGET = 0.02
"""Of mIoU, below a run without the liar."""
_HONEST = "honest"
_FEDAVG = {"algorithm": "fedavg"}
_SHARED = {"sharing.encoder": "weights", "local_loss.warm_up_epochs": 0, "blackfleet.serving": "latest"}
_LEAVE_OUT = {"trust.quarantine": "leave-out"}
METHODS: dict[str, dict[str, Any]] = {
    "fedavg": _FEDAVG,
    "fedavg, median": {**_FEDAVG, "federated.aggregate": "median"},
    "fedavg, trimmed-mean": {**_FEDAVG, "federated.aggregate": "trimmed-mean"},
    "fedavg, krum": {**_FEDAVG, "federated.aggregate": "krum"},
    "fedavg, norm bound": {**_FEDAVG, "federated.norm_bound": 1.0},
    "blackfleet": {"algorithm": "blackfleet"},
    "blackfleet, leave-out": {"algorithm": "blackfleet", **_LEAVE_OUT},
    "blackfleet, one encoder": {"algorithm": "blackfleet", **_SHARED},
    "blackfleet, one encoder, leave-out": {"algorithm": "blackfleet", **_SHARED, **_LEAVE_OUT},
    "blackfed-v2": {"algorithm": "blackfed-v2"},
    "blackfed-v2, leave-out": {"algorithm": "blackfed-v2", **_LEAVE_OUT},
    "split": {"algorithm": "split"},
    "split, leave-out": {"algorithm": "split", **_LEAVE_OUT},
}
"""What each method puts over the settings that all share, by scenario key."""

Runs = dict[tuple[str, int], Run]
"""By method and seed."""


def main() -> None:
    """Run what is missing, and print table and JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.liars", description=__doc__)
    parser.add_argument("--data-root", type=Path, help="CamVid's folder (default: $BLACKFLEET_CAMVID)")
    parser.add_argument("--image-size", default="128x96", help="default: 128x96")
    parser.add_argument(
        "--every", type=int, default=1, help="of so many frames one is taken (default 1: all)"
    )
    parser.add_argument("--rounds", type=int, default=8, help="default: 8")
    parser.add_argument("--partition", default="uniform", help="who gets which frames (default: uniform)")
    parser.add_argument("--seeds", type=read_seeds, default="0,1,2", help="default: 0,1,2")
    parser.add_argument(
        "--methods", type=some_of(METHODS), default=";".join(METHODS), help="some of them, with semicolons"
    )
    parser.add_argument("--lies", type=some_of(LIES), default=tuple(LIES), help="some, with semicolons")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each (default 2)")
    parser.add_argument("--out", type=Path, default=Path("runs/liars"), help="folder of the runs")
    options = parser.parse_args()
    root = (options.data_root or camvid_folder()).resolve()
    place = options.out / f"{options.image_size}-{options.partition}-{options.every}-{options.rounds}"
    names = sorted({path.name for path in root.glob("*/*.png")})
    chosen = frozenset(names[:: options.every])
    take = partial(with_lies, root, wanted=lambda path: path.name in chosen)
    data = take(place / "data" / _HONEST, keys=(), lie="")
    honest = _runs(options, place / _HONEST, data, "")
    finish(list(honest.values()), jobs=options.jobs)
    lied_about = train_frames(next(iter(honest.values())).folder)
    lying = {
        lie: _runs(
            options,
            place / lie,
            take(place / "data" / lie, keys=lied_about, lie=lie) if lie in ON_DISK else data,
            lie,
        )
        for lie in options.lies
    }
    finish([run for runs in lying.values() for run in runs.values()], jobs=options.jobs)
    all_runs = [*honest.values(), *(run for runs in lying.values() for run in runs.values())]
    if any(train_frames(run.folder) != lied_about for run in all_runs):
        raise SystemExit(f"runs in {place} give {LIAR} other train frames; remove them")
    report = {
        f"{method}: {lie}": summarise(
            *([runs[method, seed] for seed in options.seeds] for runs in (honest, lying[lie]))
        )
        for method in options.methods
        for lie in options.lies
        if (method, options.seeds[0]) in lying[lie]
    }
    title = f"a liar of {VEHICLES}, seeds {', '.join(map(str, options.seeds))}"
    Console(width=120).print(table(report, title))
    print(json.dumps({"benchmark": "liars", "what": title, "methods": report}))


def _runs(options: argparse.Namespace, folder: Path, data: Path, lie: str) -> Runs:
    common = {
        "dataset.name": "camvid",
        "dataset.root": str(data.resolve()),
        "dataset.partition": options.partition,
        "vehicles": VEHICLES,
        "image_size": options.image_size,
        "cores": 1,
        "broker": MEMORY_BUS,
        "rounds": options.rounds,
        "first_order.epochs": 4,
        "evaluation.overlays": 0,
    }
    return {
        (method, seed): Run(
            folder=folder / f"{method.replace(', ', '-').replace(' ', '-')}-{seed}",
            settings={**common, **METHODS[method], "seed": seed},
            prepare=partial(tell, lie, LIAR),
        )
        for method in options.methods
        if not lie or lie in (OF_WEIGHTS if METHODS[method]["algorithm"] == "fedavg" else OF_FEATURES)
        for seed in options.seeds
    }


def train_frames(run_folder: Path) -> list[str]:
    """Keys of the frames that the liar trains on."""
    keys: list[str] = json.loads((run_folder / PARTITION_NAME).read_text())["vehicles"][LIAR]["train"]
    return keys


def summarise(honest: Sequence[Run], lying: Sequence[Run]) -> dict[str, Any]:
    """Means over seeds of the honest vehicles' mIoU, with the sample standard deviation of the loss, and of
    the turns that were left out: the liar's, and those of the others, with it and of all without it."""
    pairs = [(_score(one), _score(other)) for one, other in zip(honest, lying, strict=True)]
    return {
        "without_liar": statistics.fmean(before for before, _ in pairs),
        "with_liar": statistics.fmean(after for _, after in pairs),
        "lost": statistics.fmean(before - after for before, after in pairs),
        "lost_std": sample_deviation([before - after for before, after in pairs]),
        "left_out": statistics.fmean(_left_out(run, {LIAR}) for run in lying),
        "others_left_out": statistics.fmean(_left_out(run, _others(run)) for run in lying),
        "left_out_without_liar": statistics.fmean(_left_out(run, set(_vehicles(run))) for run in honest),
        "cars_without": statistics.fmean(run.result()["classes"]["car"] or 0.0 for run in honest),
        "cars_with": statistics.fmean(run.result()["classes"]["car"] or 0.0 for run in lying),
    }


def _vehicles(run: Run) -> dict[str, Any]:
    vehicles: dict[str, Any] = run.result()["vehicles"]
    return vehicles


def _others(run: Run) -> set[str]:
    return set(_vehicles(run)) - {LIAR}


def _left_out(run: Run, whose: set[str]) -> int:
    return sum(entry["left_out"] for name, entry in _vehicles(run).items() if name in whose)


def _score(run: Run) -> float:
    return statistics.fmean(_vehicles(run)[name]["local_miou"] for name in sorted(_others(run)))


def table(report: Mapping[str, Mapping[str, float]], title: str) -> Table:
    """The report for people."""
    rows = Table(title=title, caption=f"at most {TARGET} is wanted, of a way that heeds liars")
    columns = ("method: lie", "mIoU without", "with the liar", "lost", "liar left out", "others", "no liar")
    for column in columns:
        rows.add_column(column, justify="left" if column == columns[0] else "right")
    for method, entry in report.items():
        rows.add_row(
            method,
            f"{entry['without_liar']:.3f}",
            f"{entry['with_liar']:.3f}",
            f"{entry['lost']:.3f} ± {entry['lost_std']:.3f}",
            *(f"{entry[name]:.1f}" for name in ("left_out", "others_left_out", "left_out_without_liar")),
        )
    return rows


if __name__ == "__main__":
    main()
