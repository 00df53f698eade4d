"""Which method reaches which quality by when, over which link: virtual time to a validation mIoU.

`python -m benchmarks.links` runs two fleets in virtual time: three vehicles with CamVid's sequences, and a
hundred with generated frames, ten to a city, with short turns, of which ten are tested; small by default.
`blackfed-v2`, `blackfleet`, `fedavg` and `split` over ethernet, 5G, LTE and 3G, and over LTE while half of
the vehicles are away at random times. It prints a table for each fleet and a JSON line, and draws the curves.
What is learnt is the same over each link, to the bit, which is checked. Finished runs are kept in `--out`;
the same command goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from rich.console import Console
from rich.table import Table

from benchmarks.camvid import camvid_folder
from benchmarks.options import some_of
from benchmarks.runs import Run, finish
from cloud_server.storage.recorders import LOG_NAME
from fleet.frames.rendering import render_missing

ALGORITHMS = ("blackfed-v2", "blackfleet", "fedavg", "split")
AWAY = "lte, half away"
LINKS: dict[str, dict[str, Any]] = {
    "ethernet": {"simulation.link": "ethernet"},
    "5g": {"simulation.link": "5g"},
    "lte": {"simulation.link": "lte"},
    "3g": {"simulation.link": "3g"},
    AWAY: {
        "simulation.link": "lte",
        "simulation.availability": "markov:30/30",
    },
}
"""What each puts over the others' settings, by scenario key."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much a fleet does by default."""

    vehicles: int
    frames: int
    rounds: int
    more: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By algorithm, over the others' settings."""


SIZES: Mapping[str, Size] = {
    "camvid": Size(vehicles=3, frames=20, rounds=3),
    # A hundred averaged networks that took two rounds of three steps each have learnt nothing. With twice the
    # passes and eight rounds they get no further than with these.
    "generated": Size(
        vehicles=100, frames=4, rounds=2, more={"fedavg": {"rounds": 6, "first_order.epochs": 10}}
    ),
}
_VEHICLES_A_CITY = 10
_SHORT: Mapping[str, Any] = {
    "evaluation.vehicles": 10,
    "evaluation.ood_frames": 1,
    "patience.heartbeat_s": 120.0,
    "local_loss.warm_up_epochs": 8,
    "local_loss.epochs": 2,
    "zeroth_order.batches": 1,
    "first_order.epochs": 3,
}
"""Few messages, steps and tests, of a fleet with generated frames."""
_COLOURS = ("#2b6fe0", "#e8701a", "#2f9e55", "#d04a7a")


@dataclass(frozen=True)
class Point:
    """One validation."""

    virtual_s: float
    val_miou: float


def curve(log: Path, vehicles: int) -> list[Point]:
    """The validations of a run's log, from where all `vehicles` have been validated."""
    lines = (json.loads(line) for line in log.read_text().splitlines())
    return [
        Point(line["virtual_s"], line["val_miou"])
        for line in lines
        if line["event"] == "curve" and line["val_miou"] is not None and line["validated"] >= vehicles
    ]


def time_to(points: Sequence[Point], target: float) -> float | None:
    """Virtual seconds to the first validation that is as good; None: there is none."""
    return next((point.virtual_s for point in points if point.val_miou >= target), None)


def common_target(curves: Sequence[Sequence[Point]]) -> float:
    """The best validation mIoU that every curve reaches, rounded down to hundredths."""
    return int(100 * min(max(point.val_miou for point in points) for points in curves)) / 100


def print_table(
    fleet: str, times: Mapping[tuple[str, str], float | None], target: float, console: Console
) -> None:
    """A row an algorithm, a column a link."""
    links = list(dict.fromkeys(link for _, link in times))
    table = Table("algorithm", *links, title=f"{fleet}: virtual time to a validation mIoU of {target:g}")
    for algorithm in dict.fromkeys(algorithm for algorithm, _ in times):
        cells = (times[algorithm, link] for link in links)
        table.add_row(algorithm, *("–" if cell is None else f"{cell:.1f} s" for cell in cells))
    console.print(table)


def draw(curves: Mapping[tuple[str, str], Sequence[Point]], target: float, path: Path) -> None:
    """Write the curves as a picture, a panel a link."""
    links = list(dict.fromkeys(link for _, link in curves))
    figure = Figure(figsize=(3.2 * len(links), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(links), sharey=True, squeeze=False)[0]
    algorithms = list(dict.fromkeys(algorithm for algorithm, _ in curves))
    for panel, link in zip(panels, links, strict=True):
        for number, algorithm in enumerate(algorithms):
            points = curves[algorithm, link]
            panel.plot(
                [point.virtual_s for point in points],
                [point.val_miou for point in points],
                "o-",
                ms=3,
                color=_COLOURS[number % len(_COLOURS)],
                label=algorithm,
            )
        panel.axhline(target, color="#8a94a3", linewidth=0.8)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_title(link, fontsize=10)
        panel.set_xlabel("virtual seconds", fontsize=9)
        panel.grid(color="#e4e7ec", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("validation mIoU", fontsize=9)
    panels[0].legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def settings(options: argparse.Namespace, fleet: str) -> dict[str, Any]:
    """What all runs of a fleet have in common, by scenario key."""
    size = SIZES[fleet]
    frames = options.frames or size.frames
    common: dict[str, Any] = {
        "vehicles": size.vehicles,
        "image_size": options.image_size,
        "rounds": options.rounds or size.rounds,
        "seed": options.seed,
        "dataset.frames_per_vehicle": frames,
        "evaluation.overlays": 0,
        "evaluation.ood_frames": 3,
        "simulation.time": "virtual",
        "simulation.profile": options.profile,
    }
    if fleet == "camvid":
        root = str((options.data_root or camvid_folder()).resolve())
        return {**common, "dataset.name": "camvid", "dataset.root": root}
    return {
        **common,
        "dataset.root": str((options.out / fleet / "frames").resolve()),
        "dataset.generated_cities": -(-size.vehicles // _VEHICLES_A_CITY),
        "dataset.frames_per_sequence": frames * _VEHICLES_A_CITY,
        **_SHORT,
    }


def measure(options: argparse.Namespace, fleet: str) -> dict[str, Any]:
    """Run what is not done yet of a fleet, print its table and draw its curves; what the JSON line says.

    Raises:
        SystemExit: a link has changed what is learnt.
    """
    common, out = settings(options, fleet), options.out / fleet
    runs = {
        (algorithm, link): Run(
            folder=out / f"{algorithm}-{link.replace(', ', '-').replace(' ', '-')}",
            settings={
                **common,
                **SIZES[fleet].more.get(algorithm, {}),
                "algorithm": algorithm,
                **LINKS[link],
            },
        )
        for link in options.links
        for algorithm in options.algorithms
    }
    # Before several runs read them.
    scenario = next(iter(runs.values())).scenario()
    render_missing(scenario, Path(scenario.dataset.root or ""), Console(stderr=True))
    finish(list(runs.values()), jobs=options.jobs)
    results = {key: run.result() for key, run in runs.items()}
    for algorithm in options.algorithms:
        confusions = [results[algorithm, link]["confusion"] for link in options.links]
        if any(confusion != confusions[0] for confusion in confusions):
            raise SystemExit(f"{algorithm} has learnt something else over another link")
    curves = {key: curve(run.folder / LOG_NAME, common["vehicles"]) for key, run in runs.items()}
    target = options.target or common_target(list(curves.values()))
    times = {key: time_to(points, target) for key, points in curves.items()}
    print_table(fleet, times, target, Console(width=120))
    draw(curves, target, out / "links.png")
    report = {
        f"{algorithm}, {link}": {
            "time_to_target_s": times[algorithm, link],
            "virtual_s": result["virtual_s"],
            "bytes": result["bytes_by_link"],
            "best_val_miou": max(point.val_miou for point in curves[algorithm, link]),
        }
        for (algorithm, link), result in results.items()
    }
    return {"target": target, "runs": report}


def main() -> None:
    """Run what is not done yet; print the tables and a JSON line, and draw the curves."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.links", description=__doc__)
    parser.add_argument("--fleets", type=some_of(SIZES), default=tuple(SIZES), help="by name, split by ';'")
    parser.add_argument("--data-root", type=Path, help="CamVid's folder (default: $BLACKFLEET_CAMVID)")
    parser.add_argument("--algorithms", type=some_of(ALGORITHMS, separator=","), default=ALGORITHMS)
    parser.add_argument("--links", type=some_of(LINKS), default=tuple(LINKS), help="by name, split by ';'")
    parser.add_argument("--image-size", default="64x48", help="default: 64x48")
    parser.add_argument("--frames", type=int, help="of each vehicle (default: 20 of CamVid's, 4 generated)")
    parser.add_argument("--rounds", type=int, help="default: 3 with CamVid, 2 with generated frames")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--profile", default="orin-nano", help="the vehicles' device, or a mix of some")
    parser.add_argument("--target", type=float, help="validation mIoU (default: the best that all reach)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: 2)")
    parser.add_argument("--out", type=Path, default=Path("runs/links"), help="folder of the runs")
    options = parser.parse_args()
    report = {fleet: measure(options, fleet) for fleet in options.fleets}
    print(json.dumps({"benchmark": "links", "fleets": report}))


if __name__ == "__main__":
    main()
