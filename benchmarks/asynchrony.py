"""Async against sync: virtual time to equal validation quality where devices differ by a factor of ten.

`python -m benchmarks.asynchrony` runs a fleet of generated frames in virtual time, half of its vehicles on a
device that takes ten times as long for everything: in rounds that wait for everyone, and with
`--participation async:K`. Both have the same settings, rates among them; the target is the best validation
mIoU that both reach with a seed. Time is taken when the weights that were validated were there; and, besides,
when every vehicle's validation of them was known, which takes the slow ones a turn. It prints a table and a
JSON line, and ends with an error where the mean ratio of the first times is above the bound. Finished runs
are kept in `--out`; the same command goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.links import Point, common_target, curve, time_to
from benchmarks.options import read_seeds, some_of
from benchmarks.runs import Run, finish
from cloud_server.storage.recorders import LOG_NAME
from fleet.simulation.devices import DEVICES

ALGORITHMS = ("fedavg", "blackfleet")
MOST = 0.6
"""Of the time of rounds that wait for everyone."""
_FACTOR = 10
_SHARE = 0.5
"""Of the time of rounds that wait for everyone: what async has."""


def settings(options: argparse.Namespace, algorithm: str, seed: int, *, is_async: bool) -> dict[str, Any]:
    """One run's, by scenario key; there are as many async rounds as half of the others' time has room for."""
    rounds, vehicles, buffer = options.rounds, options.vehicles, options.buffer
    fast = vehicles // 2
    contributions = _SHARE * rounds * (fast * _FACTOR + (vehicles - fast))
    return {
        "algorithm": algorithm,
        "vehicles": vehicles,
        "rounds": int(contributions / buffer) if is_async else rounds,
        "participation": f"async:{buffer}" if is_async else "all",
        "seed": seed,
        "image_size": "64x48",
        "dataset.root": str((options.out / f"data-{seed}").resolve()),
        "dataset.generated_cities": vehicles,
        "dataset.frames_per_vehicle": options.frames,
        "dataset.partition": options.partition,
        "evaluation.overlays": 0,
        "evaluation.ood_frames": 1,
        "first_order.epochs": 3,
        "first_order.schedule": "constant",
        "local_loss.schedule": "constant",
        "local_loss.warm_up_epochs": 2,
        "local_loss.epochs": 2,
        "simulation.time": "virtual",
        "simulation.link": "ethernet",
        "simulation.profile": f"fast:{fast},slow:{vehicles - fast}",
        "simulation.profiles": str((options.out / "profiles.yaml").resolve()),
    }


def write_profiles(path: Path) -> None:
    """The two devices: `car-cpu`, and one that is ten times as slow."""
    fast = DEVICES["car-cpu"]
    devices = {"fast": fast, "slow": fast.slower(_FACTOR)}
    content = {
        name: {field: getattr(device, field) for field in device.__struct_fields__}
        for name, device in devices.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"devices": content}), encoding="utf-8")


def weights_curve(log: Path, vehicles: int) -> list[Point]:
    """Mean validation mIoU by when each vehicle fetched the weights that it scored, the latest of each, from
    where all `vehicles` have scored some."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    begun: dict[str, float] = {}
    scored: list[tuple[float, str, float]] = []
    for line in lines:
        if line["event"] == "turn" and line["kind"] == "train":
            begun[line["vehicle"]] = line["virtual_s"]
        elif line["event"] == "validation":
            scored.append((begun[line["vehicle"]], line["vehicle"], line["miou"]))
    scored.sort()
    latest: dict[str, float] = {}
    points: list[Point] = []
    for place, (at_s, vehicle, miou) in enumerate(scored):
        latest[vehicle] = miou
        is_last = place + 1 == len(scored) or scored[place + 1][0] > at_s
        if is_last and len(latest) == vehicles:
            points.append(Point(at_s, float(np.mean(list(latest.values())))))
    return points


def _times(curves: Sequence[Sequence[Point]]) -> tuple[float, float, float]:
    """The target that both reach, and the virtual time of each."""
    target = common_target(curves)
    waited, unwaited = (time_to(points, target) for points in curves)
    assert waited is not None and unwaited is not None, "a common target is one that both reach"
    return target, waited, unwaited


def main() -> None:
    """Run what is not done yet; print the table and a JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.asynchrony", description=__doc__)
    parser.add_argument("--algorithms", type=some_of(ALGORITHMS, separator=","), default=("fedavg",))
    parser.add_argument("--vehicles", type=int, default=4, help="half of them fast (default: 4)")
    parser.add_argument("--buffer", type=int, default=2, help="K contributions a round (default: 2)")
    parser.add_argument("--rounds", type=int, default=5, help="that wait for everyone (default: 5)")
    parser.add_argument("--frames", type=int, default=15, help="of each vehicle (default: 15)")
    parser.add_argument("--partition", default="uniform", help="default: uniform; city: each its own")
    parser.add_argument("--seeds", type=read_seeds, default=(0, 1, 2), help="default: 0,1,2")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/asynchrony"), help="folder of the runs")
    options = parser.parse_args()
    write_profiles(options.out / "profiles.yaml")
    runs = {
        (algorithm, seed, is_async): Run(
            folder=options.out / f"{algorithm}-{seed}-{'async' if is_async else 'sync'}",
            settings=settings(options, algorithm, seed, is_async=is_async),
        )
        for algorithm in options.algorithms
        for seed in options.seeds
        for is_async in (False, True)
    }
    finish(list(runs.values()), jobs=options.jobs)
    table = Table("algorithm", "seed", "target", "sync", "async", "ratio", "known", "turns, fast and slow")
    ratios: dict[str, list[float]] = {algorithm: [] for algorithm in options.algorithms}
    known: dict[str, list[float]] = {algorithm: [] for algorithm in options.algorithms}
    for algorithm in options.algorithms:
        for seed in options.seeds:
            logs = [runs[algorithm, seed, is_async].folder / LOG_NAME for is_async in (False, True)]
            target, waited, unwaited = _times([weights_curve(log, options.vehicles) for log in logs])
            _, waited_known, unwaited_known = _times([curve(log, options.vehicles) for log in logs])
            ratios[algorithm].append(unwaited / waited)
            known[algorithm].append(unwaited_known / waited_known)
            table.add_row(
                algorithm,
                str(seed),
                f"{target:g}",
                f"{waited:.1f} s",
                f"{unwaited:.1f} s",
                f"{unwaited / waited:.2f}",
                f"{unwaited_known / waited_known:.2f}",
                _turns(logs[1].parent),
            )
    Console(width=100).print(table)
    means = {algorithm: float(np.mean(found)) for algorithm, found in ratios.items()}
    print(json.dumps({"benchmark": "asynchrony", "mean_ratio": means, "ratios": ratios, "when_known": known}))
    if any(mean > MOST for mean in means.values()):
        raise SystemExit(f"async takes {means} of the time of sync to equal quality, more than {MOST}")


def _turns(folder: Path) -> str:
    """How many turns of learning of the fast and of the slow vehicles counted."""
    devices = {
        name: car["device"] for name, car in Run(folder=folder, settings={}).result()["vehicles"].items()
    }
    lines = (json.loads(line) for line in (folder / LOG_NAME).read_text().splitlines())
    counted = [
        devices[line["vehicle"]] for line in lines if line["event"] == "turn_done" and "behind" in line
    ]
    return f"{counted.count('fast')}, {counted.count('slow')}"


if __name__ == "__main__":
    main()
