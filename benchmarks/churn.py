"""Vehicles that come and go: in each virtual minute a tenth of them loses its link, and is back within it.

`python -m benchmarks.churn` runs 100 vehicles with generated frames for 200 rounds of `blackfleet` over LTE
in virtual time; for each round four of them are drawn. It prints how long rounds took, how often vehicles
were away, how often in a turn, and what became of their uploads; and a JSON line. It fails if a round took
longer than its work and the longest absences explain, if a vehicle was given up, or if an upload was trained
twice or not at all. The run is kept in `--out`; the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.runs import Run, finish
from cloud_server.storage.recorders import LOG_NAME
from fleet.scenario import load_scenario
from protocol.noise import derive_seed

_MINUTE_S = 60.0
_SLOW = """devices:
  slow: {forward_ms: 40000, vjp_ms: 150000, codec_ms: 8000}
"""
"""So slow that a turn on small frames takes tens of seconds, and absences fall into some."""


def trace(vehicles: Sequence[str], *, share: float, minutes: int, seed: int) -> Iterator[str]:
    """Lines of a trace: in each minute this share of the vehicles leaves, and returns before it is over."""
    away: dict[str, list[tuple[float, float]]] = {vehicle: [] for vehicle in vehicles}
    for minute in range(minutes):
        random = np.random.Generator(np.random.Philox(key=derive_seed(seed, "churn", minute)))
        for place in random.choice(len(vehicles), round(share * len(vehicles)), replace=False):
            start, end = sorted(random.uniform(0.01, 0.99, 2).round(3))
            if start < end:
                first_s = _MINUTE_S * minute
                away[vehicles[place]].append((first_s + _MINUTE_S * start, first_s + _MINUTE_S * end))
    yield "vehicle,from_s,to_s,there"
    for vehicle, spans in away.items():
        now = 0.0
        for start, end in spans:
            yield f"{vehicle},{now:.3f},{start:.3f},yes"
            yield f"{vehicle},{start:.3f},{end:.3f},no"
            now = end
        yield f"{vehicle},{now:.3f},,yes"


def summarise(
    log: Path, result: dict[str, Any], absent: dict[str, list[tuple[float, float]]]
) -> dict[str, Any]:
    """What a run of comings and goings has come to; `absent` says when each vehicle was away."""
    ends: list[float] = []
    begun: dict[str, float] = {}
    turns = disturbed = 0
    for line in log.read_text().splitlines():
        event = json.loads(line)
        name = event["event"]
        if name == "committed" and event["kind"] in ("initial", "train"):
            ends.append(event["virtual_s"])
        elif name == "turn":
            begun[event["vehicle"]] = event["virtual_s"]
        elif name == "turn_done":
            turns += 1
            start, end = begun[event["vehicle"]], event["virtual_s"]
            disturbed += any(s < end and e > start for s, e in absent.get(event["vehicle"], ()))
    rounds = np.diff(ends)
    cars = result["vehicles"].values()
    uploads = [car["uploads"] for car in cars]
    return {
        "rounds": len(rounds),
        "virtual_s": result["virtual_s"],
        "round_median_s": float(np.median(rounds)),
        "round_longest_s": float(np.max(rounds)),
        "turns": turns,
        "turns_disturbed": disturbed,
        "absences": sum(car["absences"] for car in cars),
        "away_s": sum(car["away_s"] for car in cars),
        "packets_again": sum(car["packets_again"] for car in cars),
        "given_up": len(result["failed"]),
        "acknowledged": sum(each["acknowledged"] for each in uploads),
        "trained": sum(each["trained"] for each in uploads),
        "trained_twice": sum(each["repeated"] for each in uploads),
        "mean_local_miou": result["mean_local_miou"],
        "wall_s": result["wall_s"],
    }


def spans(lines: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    """When each vehicle of a trace is away."""
    away: dict[str, list[tuple[float, float]]] = {}
    for line in lines[1:]:
        vehicle, start, end, there = line.split(",")
        if there == "no":
            away.setdefault(vehicle, []).append((float(start), float(end)))
    return away


def mistakes(summary: dict[str, Any], rounds: int) -> list[str]:
    """What must not have happened, and has."""
    said = []
    if summary["rounds"] != rounds:
        said.append(f"{summary['rounds']} of {rounds} rounds were run")
    most_s = summary["round_median_s"] + 2 * _MINUTE_S
    if summary["round_longest_s"] > most_s:
        said.append(f"a round took {summary['round_longest_s']:.0f} s, where {most_s:.0f} s are explained")
    if summary["given_up"]:
        said.append(f"{summary['given_up']} vehicles were given up")
    if summary["trained_twice"]:
        said.append(f"{summary['trained_twice']} frames were trained twice in a pass")
    if summary["trained"] != summary["acknowledged"]:
        said.append(f"{summary['trained']} of {summary['acknowledged']} acknowledged frames were trained")
    return said


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is not done yet, and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.churn", description=__doc__)
    parser.add_argument("--vehicles", type=int, default=100, help="default: 100")
    parser.add_argument("--rounds", type=int, default=200, help="default: 200")
    parser.add_argument(
        "--drawn", type=int, default=4, help="vehicles that take part in a round (default: 4)"
    )
    parser.add_argument("--share", type=float, default=0.1, help="that leaves each minute (default: 0.1)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--out", type=Path, default=Path("runs/churn"), help="folder of the run")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    vehicles = load_scenario(None, {"vehicles": options.vehicles}).vehicle_ids
    # Twice what the rounds take, and more: the last state lasts.
    minutes = 4 + 2 * options.rounds
    lines = list(trace(vehicles, share=options.share, minutes=minutes, seed=options.seed))
    (options.out / "trace.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (options.out / "profiles.yaml").write_text(_SLOW, encoding="utf-8")
    run = Run(
        folder=options.out / "run",
        settings={
            "algorithm": "blackfleet",
            "vehicles": options.vehicles,
            "rounds": options.rounds,
            "seed": options.seed,
            "participation": options.drawn,
            "image_size": "64x48",
            "dataset.root": str((options.out / "data").resolve()),
            "dataset.frames_per_vehicle": 3,
            "dataset.generated_cities": max(1, options.vehicles // 20),
            "dataset.partition": "uniform",
            "local_loss.warm_up_epochs": 1,
            "local_loss.epochs": 1,
            "first_order.epochs": 1,
            "evaluation.vehicles": 2,
            "evaluation.ood_frames": 1,
            "evaluation.overlays": 0,
            "simulation.time": "virtual",
            "simulation.link": "lte",
            "simulation.profiles": str((options.out / "profiles.yaml").resolve()),
            "simulation.profile": "slow",
            "simulation.availability": str((options.out / "trace.csv").resolve()),
        },
    )
    finish([run], jobs=1)
    summary = summarise(run.folder / LOG_NAME, run.result(), spans(lines))
    table = Table("rounds", "median", "longest", "absences", "turns", "disturbed", "sent again", "given up")
    table.add_column("frames")
    table.add_column("trained")
    table.add_column("twice")
    table.add_row(
        str(summary["rounds"]),
        f"{summary['round_median_s']:.1f} s",
        f"{summary['round_longest_s']:.1f} s",
        str(summary["absences"]),
        str(summary["turns"]),
        str(summary["turns_disturbed"]),
        str(summary["packets_again"]),
        str(summary["given_up"]),
        str(summary["acknowledged"]),
        str(summary["trained"]),
        str(summary["trained_twice"]),
    )
    Console(width=120).print(table)
    print(json.dumps({"benchmark": "churn", **summary}))
    if said := mistakes(summary, options.rounds):
        raise SystemExit("; ".join(said))


if __name__ == "__main__":
    main()
