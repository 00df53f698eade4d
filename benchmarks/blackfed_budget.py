"""What BlackFed's zeroth-order updates are worth at its budget: `blackfed-v1` against `frozen`.

`python -m benchmarks.blackfed_budget` runs three vehicles on CamVid's sequences, with 40 passes a run
whatever its rounds. First the rate is chosen, then the perturbation c, then the number of queries q, by
validation mIoU at the first seed. The chosen setting and `frozen` then have all seeds. Last come all q and
all numbers of rounds at the first seed, with the chosen c and rate. Prints three tables and one JSON line;
finished runs are kept in `--out`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.camvid import camvid_folder
from benchmarks.options import add_device, read_seeds
from benchmarks.runs import Run, finish
from fleet.broker import MEMORY_BUS
from fleet.compare.spread import sample_deviation

ROUNDS = (4, 10, 20)
_PASSES = 40
"""Over each train frame in a run, whatever the number of rounds: the cloud's steps are the same."""


@dataclass(frozen=True, kw_only=True)
class Spsa:
    """What is chosen of the estimator; at first its defaults."""

    rate: float = 1e-4
    perturbation: float = 0.005
    queries: int = 2

    def __str__(self) -> str:
        return f"q{self.queries}-c{self.perturbation:g}-rate{self.rate:g}"

    def settings(self) -> dict[str, Any]:
        """By scenario key."""
        return {f"spsa.{key}": value for key, value in asdict(self).items()}


CHOICES: dict[str, tuple[float, ...]] = {
    "rate": (1e-5, 1e-4, 1e-3),
    "perturbation": (0.001, 0.005, 0.02),
    "queries": (1, 2, 8),
}
"""What is chosen, in this order."""


def main() -> None:
    """Run what is missing, and print tables and JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.blackfed_budget", description=__doc__)
    parser.add_argument("--data-root", type=Path, help="CamVid's folder (default: $BLACKFLEET_CAMVID)")
    parser.add_argument("--image-size", default="256x192", help="default: 256x192")
    parser.add_argument("--seeds", type=read_seeds, default="0,1,2", help="default: 0,1,2")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each (default 2)")
    add_device(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/blackfed-budget"), help="folder of the runs")
    options = parser.parse_args()
    bench = _Bench((options.data_root or camvid_folder()).resolve(), options)
    first = options.seeds[0]
    chosen, tried = bench.choose(first)
    console = Console(width=110)
    console.print(choice_table(tried))
    final = bench.rows({"frozen": None, "blackfed-v1": chosen}, options.seeds, ROUNDS[:1])
    console.print(score_table(final, f"chosen: {chosen}; seeds {', '.join(map(str, options.seeds))}"))
    settings = {"frozen": None} | {
        f"blackfed-v1, q = {queries}": replace(chosen, queries=queries) for queries in CHOICES["queries"]
    }
    grid = bench.rows(settings, (first,), ROUNDS)
    console.print(score_table(grid, f"queries and rounds, seed {first}"))
    report = {"chosen": asdict(chosen), "tried": tried, "final": final, "grid": grid}
    print(json.dumps({"benchmark": "blackfed_budget", "image_size": options.image_size, **report}))


class _Bench:
    """The runs, by what they are of."""

    def __init__(self, data_root: Path, options: argparse.Namespace) -> None:
        self._out: Path = options.out / options.image_size
        self._jobs: int = options.jobs
        self._common: dict[str, Any] = {
            "dataset.name": "camvid",
            "dataset.root": str(data_root),
            "dataset.partition": "sequence",
            "vehicles": 3,
            "image_size": options.image_size,
            "cores": 1,
            "device": options.device,
            "broker": MEMORY_BUS,
            "evaluation.overlays": 0,
        }

    def choose(self, seed: int) -> tuple[Spsa, list[dict[str, Any]]]:
        """The setting with the best validation mIoU, a value after another, and all that were tried."""
        chosen, tried = Spsa(), []
        for key, values in CHOICES.items():
            runs = {value: self._run(replace(chosen, **{key: value}), ROUNDS[0], seed) for value in values}
            finish(list(runs.values()), jobs=self._jobs)
            scores = {value: run.val_miou() for value, run in runs.items()}
            tried += [
                {**asdict(replace(chosen, **{key: value})), "val_miou": score}
                for value, score in scores.items()
            ]
            chosen = replace(chosen, **{key: max(scores, key=scores.__getitem__)})
        return chosen, tried

    def rows(
        self, settings: Mapping[str, Spsa | None], seeds: Sequence[int], rounds: Sequence[int]
    ) -> list[dict[str, Any]]:
        """A row for each setting and number of rounds; None is `frozen`."""
        runs = {
            (name, count): [self._run(chosen, count, seed) for seed in seeds]
            for count in rounds
            for name, chosen in settings.items()
        }
        finish([run for group in runs.values() for run in group], jobs=self._jobs)
        return [
            {"method": name, "rounds": count, **summarise(group)} for (name, count), group in runs.items()
        ]

    def _run(self, chosen: Spsa | None, rounds: int, seed: int) -> Run:
        if chosen is None:
            name, settings = "frozen", {"algorithm": "frozen"}
        else:
            name, settings = f"blackfed-v1-{chosen}", {"algorithm": "blackfed-v1", **chosen.settings()}
        return Run(
            folder=self._out / f"{name}-{rounds}-{seed}",
            settings={
                **self._common,
                **settings,
                "rounds": rounds,
                "first_order.epochs": _PASSES // rounds,
                "seed": seed,
            },
        )


def summarise(runs: Sequence[Run]) -> dict[str, Any]:
    """Means over seeds of mIoU and bytes, the test mIoU with its sample standard deviation."""
    results = [run.result() for run in runs]
    scores = [result["mean_local_miou"] for result in results]
    return {
        "val_miou": statistics.fmean(run.val_miou() for run in runs),
        "miou_mean": statistics.fmean(scores),
        "miou_std": sample_deviation(scores),
        "miou_by_seed": scores,
        "queries": sum(vehicle["queries"] for vehicle in results[0]["vehicles"].values()),
        "uplink_bytes": round(statistics.fmean(result["uplink_bytes"] for result in results)),
    }


def choice_table(tried: Sequence[Mapping[str, Any]]) -> Table:
    """What was chosen from, on validation frames."""
    table = Table(title="choices on validation frames")
    for column in ("q", "c", "rate", "val mIoU"):
        table.add_column(column, justify="right")
    for row in tried:
        cells = (row["queries"], row["perturbation"], row["rate"])
        table.add_row(*(f"{cell:g}" for cell in cells), f"{row['val_miou']:.3f}")
    return table


def score_table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """The rows for people."""
    table = Table(title=title)
    for column in ("method", "rounds", "val mIoU", "mIoU", "queries", "up, MB"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in rows:
        table.add_row(
            row["method"],
            str(row["rounds"]),
            f"{row['val_miou']:.3f}",
            f"{row['miou_mean']:.3f} ± {row['miou_std']:.3f}",
            str(row["queries"]),
            f"{row['uplink_bytes'] / 1e6:.1f}",
        )
    return table


if __name__ == "__main__":
    main()
