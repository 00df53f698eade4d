"""The choices inside blackfleet, each against the same run without it: loss-map weighting, and serving.

`python -m benchmarks.blackfleet_choices --data-root CAMVID` prints a table and last one JSON line. A choice is
made on mIoU on validation frames, with the weights that would serve each vehicle after the last round; test
mIoU is reported beside it and decides nothing. Runs whose result is in the folder already are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from cloud_server.config import BlackFleetConfig, FirstOrderConfig, LocalLossConfig
from cloud_server.run_log import LOG_NAME
from fleet.compare import parse_seeds
from fleet.job import RESULT_NAME
from fleet.launch import SCENARIO_NAME, launch
from fleet.progress import format_bytes
from fleet.scenario import DatasetPart, EvaluationPart, Scenario, load_scenario


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One row of the table."""

    weight_power: float = 0.0
    serving: str = "best"


CHOICES = {
    "plain": Choice(),
    "weighted": Choice(weight_power=0.5),
    "latest": Choice(serving="latest"),
    "statistics": Choice(serving="statistics"),
}
"""By name; the others differ from `plain` in one setting."""
_COLUMNS = ("choice", "weight power", "serving", "val mIoU", "test local", "test OOD", "up", "down")


def main() -> None:
    """Run what is missing and print table and JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.blackfleet_choices", description=__doc__)
    parser.add_argument("--data-root", type=Path, required=True, help="folder of CamVid")
    parser.add_argument("--folder", type=Path, default=Path("runs/blackfleet-choices"), help="for the runs")
    parser.add_argument("--seeds", default="0,1", help="comma-separated (default 0,1)")
    parser.add_argument("--choices", default=",".join(CHOICES), help=f"some of {', '.join(CHOICES)} (all)")
    parser.add_argument("--vehicles", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--warm-up-epochs", type=int, default=20)
    parser.add_argument("--local-epochs", type=int, default=5)
    parser.add_argument("--foo-epochs", type=int, default=5)
    options = parser.parse_args()
    names = tuple(options.choices.split(","))
    try:
        unknown = sorted(set(names) - set(CHOICES))
        if unknown:
            raise ValueError(f"unknown choice {unknown[0]!r}, expected some of: {', '.join(CHOICES)}")
        seeds = parse_seeds(options.seeds)
        scenario = Scenario(
            algorithm="blackfleet",
            vehicles=options.vehicles,
            rounds=options.rounds,
            dataset=DatasetPart(name="camvid", root=str(options.data_root)),
            local_loss=LocalLossConfig(warm_up_epochs=options.warm_up_epochs, epochs=options.local_epochs),
            first_order=FirstOrderConfig(epochs=options.foo_epochs),
            evaluation=EvaluationPart(overlays=0),
        )
        rows = [
            summarise(name, [measure(scenario, name, seed, options.folder) for seed in seeds])
            for name in names
        ]
    except (ValueError, OSError) as error:
        sys.exit(f"blackfleet_choices: {error}")
    table = Table(title=f"blackfleet on CamVid, {options.vehicles} vehicles, seeds {options.seeds}")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in ("choice", "serving") else "right")
    for row in rows:
        table.add_row(*_cells(row))
    Console().print(table)
    print(json.dumps({"benchmark": "blackfleet_choices", "seeds": seeds, "rows": rows}))


def measure(scenario: Scenario, name: str, seed: int, folder: Path) -> dict[str, Any]:
    """The scores of one run, which is launched, or resumed, unless it is complete.

    Raises:
        ValueError: its folder holds a run of another scenario.
    """
    choice = CHOICES[name]
    wanted = msgspec.structs.replace(
        scenario,
        seed=seed,
        local_loss=msgspec.structs.replace(scenario.local_loss, weight_power=choice.weight_power),
        blackfleet=BlackFleetConfig(serving=choice.serving),
    )
    run_folder = folder / f"{name}-seed{seed}"
    begun = (run_folder / SCENARIO_NAME).exists()
    if begun:
        kept = load_scenario(run_folder / SCENARIO_NAME, {})
        if kept != msgspec.structs.replace(wanted, cores=kept.cores):
            raise ValueError(f"{run_folder} holds a run of another scenario; choose another --folder")
    if not (run_folder / RESULT_NAME).exists():
        launch(wanted, run_folder, resume=begun, console=Console(stderr=True))
    result = json.loads((run_folder / RESULT_NAME).read_text())
    events = [json.loads(line) for line in (run_folder / LOG_NAME).read_text().splitlines()]
    curve = [event for event in events if event["event"] == "curve"]
    return {
        "val_miou": curve[-1]["val_miou"],
        "local_miou": result["mean_local_miou"],
        "ood_miou": result["mean_ood_miou"],
        "uplink_bytes": result["uplink_bytes"],
        "downlink_bytes": result["downlink_bytes"],
    }


def summarise(name: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, for mIoU with the sample standard deviation (0 for one seed) and each run's value."""
    summary: dict[str, Any] = {
        "choice": name,
        "weight_power": CHOICES[name].weight_power,
        "serving": CHOICES[name].serving,
    }
    for key in ("val_miou", "local_miou", "ood_miou"):
        values = [run[key] for run in runs]
        summary[f"{key}_mean"] = statistics.fmean(values)
        summary[f"{key}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
        summary[f"{key}_by_seed"] = values
    for key in ("uplink_bytes", "downlink_bytes"):
        summary[key] = round(statistics.fmean(run[key] for run in runs))
    return summary


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["choice"],
        f"{row['weight_power']:g}",
        row["serving"],
        *(
            f"{row[f'{key}_mean']:.3f} ± {row[f'{key}_std']:.3f}"
            for key in ("val_miou", "local_miou", "ood_miou")
        ),
        format_bytes(row["uplink_bytes"]),
        format_bytes(row["downlink_bytes"]),
    ]


if __name__ == "__main__":
    main()
