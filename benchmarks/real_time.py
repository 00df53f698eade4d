"""Virtual time against real time: the same fleet, its links and devices simulated both ways.

`python -m benchmarks.real_time` runs four vehicles with generated frames twice, in virtual time and throttled
in real time, and prints both ends: the same bits, and how far the times differ. Devices are chosen so slow
that this machine keeps up with all of them. It ends with a JSON line; finished runs are kept in `--out`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.runs import Run, finish
from benchmarks.slow_link import learnt

MOST_APART = 0.1
"""Of the virtual end, by which the real one may differ."""
_SLOW = """devices:
  slow: {forward_ms: 2500, vjp_ms: 8000, codec_ms: 100}
  slow-cloud: {network_ms: 800}
links:
  narrow: {up_mbit_s: 0.1, down_mbit_s: 0.3, latency_ms: 80, jitter_ms: 20, loss: 0.002}
"""


def main() -> None:
    """Run what is not done yet, and print how both ends compare."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_time", description=__doc__)
    parser.add_argument("--algorithm", default="blackfed-v2", help="default: blackfed-v2")
    parser.add_argument("--rounds", type=int, default=1, help="default: 1")
    parser.add_argument("--out", type=Path, default=Path("runs/real-time"), help="folder of the runs")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    profiles = options.out / "profiles.yaml"
    profiles.write_text(_SLOW, encoding="utf-8")
    common: dict[str, Any] = {
        "algorithm": options.algorithm,
        "vehicles": 4,
        "rounds": options.rounds,
        "image_size": "64x48",
        "dataset.root": str((options.out / "data").resolve()),
        "dataset.frames_per_sequence": 12,
        "first_order.epochs": 3,
        "evaluation.overlays": 0,
        "evaluation.ood_frames": 3,
        "simulation.profiles": str(profiles.resolve()),
        "simulation.profile": "slow",
        "simulation.cloud": "slow-cloud",
        "simulation.link": "narrow",
    }
    runs = {
        time: Run(folder=options.out / time, settings={**common, "simulation.time": time})
        for time in ("virtual", "real")
    }
    finish(list(runs.values()), jobs=1)
    results = {time: run.result() for time, run in runs.items()}
    ends = {time: result["virtual_s"] for time, result in results.items()}
    same_bits = learnt(runs["virtual"].folder) == learnt(runs["real"].folder)
    ratio = ends["real"] / ends["virtual"]
    table = Table("time", "end of the run", "this machine's time", "up", "down")
    for time, result in results.items():
        sent = result["bytes_by_link"]["narrow"]
        cells = (f"{ends[time]:.1f} s", f"{result['wall_s']:.0f} s", str(sent["up"]), str(sent["down"]))
        table.add_row(time, *cells)
    Console().print(table)
    print(json.dumps({"benchmark": "real_time", "ends_s": ends, "ratio": ratio, "same_bits": same_bits}))
    if not same_bits or abs(ratio - 1) > MOST_APART:
        raise SystemExit(f"real time ends {ratio:.3f} times as late, with the same bits: {same_bits}")


if __name__ == "__main__":
    main()
