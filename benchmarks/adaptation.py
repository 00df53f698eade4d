"""How well vehicles adapt a pretrained encoder to a domain of their own, by each way of learning.

`python -m benchmarks.adaptation` pretrains on two CamVid sequences, then adapts a vehicle to the third under
fog, night and a colour cast of severity 3: per-channel scales and biases (`film`) learn, at equal uplink
bytes. Four settings: the cloud's network may not change and the vehicle has labels; the same without labels,
from the entropy of the cloud's predictions; without labels, with BatchNorm statistics of the vehicle's own
frames in the cloud, and the guard; and a network that learns along. Of three rates each method gets the one
with the best validation mIoU at the first seed and the frozen network. Finished runs are kept in `--out`.
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

from benchmarks.adaptation_methods import METHODS, SETTINGS, UNLABELLED, means_something
from benchmarks.camvid import camvid_folder
from benchmarks.options import add_device, read_seeds, some_of
from benchmarks.runs import Run, finish, pretrained
from fleet.compare.spread import sample_deviation

UNLABELLED_TARGET, MOST_LOSS = 0.5, 0.01
"""In the setting `UNLABELLED`: of the labelled white box's gain under fog, and the most mIoU that may be lost
anywhere."""
GAIN_TARGET = 0.8
"""Of `activation` under fog with labels, times the gain of the white box."""
MEAN_TARGETS = {"surrogate K=1": 0.9, "surrogate K=4": 0.95}
"""With labels and a network that stays, in the mean over the conditions, times the gain of the white box."""
_SOURCE, _TARGET = ("0001TP", "0016E5"), "0006R0"
_ROUNDS = 4
"""Of the adaptation."""
CONDITIONS = ("fog", "night", "colour_cast")
_SEVERITY = 3
_CHOSEN_IN = {**{setting: setting for setting in SETTINGS}, "labels, the network learns": "labels"}
"""The setting in which a method's rate for this one is chosen."""
Cell = tuple[str, str, str]
"""Setting, condition, method."""


def main() -> None:
    """Run the benchmark and print its tables and JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adaptation", description=__doc__)
    parser.add_argument("--data-root", type=Path, help="CamVid's folder (default: $BLACKFLEET_CAMVID)")
    parser.add_argument("--seeds", type=read_seeds, default="0,1,2", help="default: 0,1,2")
    parser.add_argument(
        "--conditions",
        type=some_of(CONDITIONS, separator=","),
        default=",".join(CONDITIONS),
        help="default: %(default)s",
    )
    parser.add_argument(
        "--settings", type=some_of(SETTINGS), default=";".join(SETTINGS), help="default: %(default)s"
    )
    parser.add_argument(
        "--methods",
        type=some_of(METHODS),
        default=";".join(METHODS),
        help="parted by semicolons, white-box among them; default: all",
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each (default 2)")
    add_device(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/adaptation"), help="folder of the runs")
    options = parser.parse_args()
    if "white-box" not in options.methods:
        parser.error("--methods must name white-box, whose gain is the measure")
    bench = _Bench(options)
    cells: list[Cell] = [
        (setting, condition, method)
        for setting in options.settings
        for condition in options.conditions
        for method in options.methods
        if means_something(setting, method)
    ]
    rates = bench.choose_rates(cells, options.seeds[0])
    results = bench.results(cells, rates, options.seeds)
    report = [entry(cell, rates[cell], results[cell], results) for cell in cells]
    for setting in options.settings:
        Console(width=110).print(table(setting, [row for row in report if row["setting"] == setting]))
    print(json.dumps({"benchmark": "adaptation", "seeds": options.seeds, "rows": report}))


def _rated_as(method: str) -> str:
    """The method whose rate this one takes: `activation, anchored` that of `activation`."""
    return method.partition(",")[0]


class _Bench:
    """The runs, by what they are of."""

    def __init__(self, options: argparse.Namespace) -> None:
        root = str((options.data_root or camvid_folder()).resolve())
        data = {"dataset.name": "camvid", "dataset.root": root}
        self._data: dict[str, Any] = {**data, "cores": 1, "device": options.device}
        self._out: Path = options.out
        self._jobs: int = options.jobs

    def choose_rates(self, cells: Sequence[Cell], seed: int) -> dict[Cell, float | None]:
        """Each cell's rate: the one with the best validation mIoU, in the setting where it is chosen."""
        deciding = {
            (_CHOSEN_IN[setting], condition, method)
            for setting, condition, method in cells
            if METHODS[method].rates
        }
        trials = {
            (cell, rate): self._run(cell, rate, seed)
            for cell in sorted(deciding)
            for rate in METHODS[cell[2]].rates
        }
        finish(list(trials.values()), jobs=self._jobs)
        best = {
            cell: max(METHODS[cell[2]].rates, key=lambda rate: trials[cell, rate].val_miou())
            for cell in deciding
        }
        return {cell: best.get((_CHOSEN_IN[cell[0]], cell[1], _rated_as(cell[2]))) for cell in cells}

    def results(
        self, cells: Sequence[Cell], rates: Mapping[Cell, float | None], seeds: Sequence[int]
    ) -> dict[Cell, list[dict[str, Any]]]:
        """`result.json` of each cell's runs, one a seed."""
        runs = {(cell, seed): self._run(cell, rates[cell], seed) for seed in seeds for cell in cells}
        finish(list(runs.values()), jobs=self._jobs)
        return {cell: [runs[cell, seed].result() for seed in seeds] for cell in cells}

    def _run(self, cell: Cell, rate: float | None, seed: int) -> Run:
        setting, condition, method = cell
        chosen = {} if rate is None else {METHODS[_rated_as(method)].rate_key: rate}
        name = f"{setting}-{condition}-{method}-{'' if rate is None else f'{rate:g}-'}{seed}"
        return Run(
            folder=self._out / name.replace(",", "").replace(" ", "-"),
            settings={
                **self._data,
                "broker": "memory",
                "vehicles": 1,
                "rounds": _ROUNDS,
                "seed": seed,
                "dataset.cities": [_TARGET],
                "conditions": {"car-01": f"{condition}:{_SEVERITY}"},
                "start": str(self._start(seed)),
                "adaptation.subspace": "film",
                "evaluation.overlays": 0,
                **METHODS[method].settings,
                **SETTINGS[setting],
                **chosen,
            },
        )

    def _start(self, seed: int) -> Path:
        """The folder that pretraining with this seed has written, done now if it has not been."""
        return pretrained(
            self._out / f"start-{seed}",
            {
                **self._data,
                "dataset.cities": list(_SOURCE),
                "vehicles": 1,
                "seed": seed,
                "rounds": 5,
                "first_order.epochs": 5,
            },
        ).resolve()


def entry(
    cell: Cell,
    rate: float | None,
    results: Sequence[Mapping[str, Any]],
    everything: Mapping[Cell, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    """One row: means over the seeds; `share_of_white_box` is that of the gain."""
    setting, condition, method = cell
    measure = "labels" if setting == UNLABELLED else setting
    white_box = everything.get((measure, condition, "white-box"), ())
    after = [result["mean_local_miou"] for result in results]
    best_gain = (
        _mean(white_box, "mean_local_miou") - _mean(white_box, "initial_local_miou") if white_box else 0.0
    )
    gain = statistics.fmean(after) - _mean(results, "initial_local_miou")
    return {
        "setting": setting,
        "condition": f"{condition}:{_SEVERITY}",
        "method": method,
        "rate": rate,
        "miou_before": _mean(results, "initial_local_miou"),
        "miou_mean": statistics.fmean(after),
        "miou_std": sample_deviation(after),
        "share_of_white_box": gain / best_gain if best_gain > 0 else None,
        "taken_back": sum(entry["taken_back"] for result in results for entry in result["vehicles"].values()),
        "source_miou_before": _mean(results, "initial_source_miou"),
        "source_miou": _mean(results, "mean_source_miou"),
        "uplink_bytes": round(_mean(results, "uplink_bytes")),
        "downlink_bytes": round(_mean(results, "downlink_bytes")),
    }


def _mean(results: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.fmean(result[key] for result in results)


def table(setting: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """One setting's rows for people."""
    shown = Table(title=setting)
    columns = (
        "condition",
        "method",
        "rate",
        "before",
        "mIoU",
        "of white box",
        "source",
        "up, MB",
        "down, MB",
    )
    for column in columns:
        shown.add_column(column, justify="left" if column in columns[:2] else "right")
    for row in rows:
        share = row["share_of_white_box"]
        shown.add_row(
            row["condition"],
            row["method"],
            "" if row["rate"] is None else f"{row['rate']:g}",
            f"{100 * row['miou_before']:.1f}",
            f"{100 * row['miou_mean']:.1f} ± {100 * row['miou_std']:.1f}",
            "" if share is None else f"{share:.2f}",
            f"{100 * row['source_miou_before']:.1f} → {100 * row['source_miou']:.1f}",
            f"{row['uplink_bytes'] / 1e6:.1f}",
            f"{row['downlink_bytes'] / 1e6:.2f}",
        )
    if setting == "labels":
        means = " and ".join(f"{name} at least {share:g}" for name, share in MEAN_TARGETS.items())
        fog = f"activation at least {GAIN_TARGET} of the white box's gain under fog"
        shown.caption = f"targets: {fog}; in the mean {means}"
    if setting == UNLABELLED:
        shown.caption = (
            f"targets: at least {UNLABELLED_TARGET} of the labelled white box's gain under fog, and no "
            f"condition more than {100 * MOST_LOSS:g} point below its start"
        )
    return shown


if __name__ == "__main__":
    main()
