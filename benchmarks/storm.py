"""Kills, stops, cuts, lost brokers, full disks and jumping clocks, by the thousand: do they change a bit?

`python -m benchmarks.storm --minutes 30` runs small fleets, seed by seed, an algorithm after another. Cloud,
vehicles and broker are killed and stopped at random moments; processes also die between two changes of their
files, or in the middle of a write, or find no room; lines are cut or fall silent; the broker comes back with
nothing; wall clocks jump by years. Each end is compared with that of the same run undisturbed: weights,
moments, states, scores and counters. Finished seeds are lines of `OUT/storm.jsonl`, and none is run twice;
one that had no end when its time was over is run again by the next command, and counts as neither.
`--merge` adds up those of several machines. A run that ends otherwise keeps its folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.options import some_of
from benchmarks.small_fleets import forked, undisturbed
from benchmarks.storm_run import KILLS, OTHERS, Outcome, Storm, Weather, clear, record
from protocol.doors import file_name

_RESULTS = "storm.jsonl"
CASES: dict[str, dict[str, Any]] = {
    "blackfed-v2": {"algorithm": "blackfed-v2"},
    "blackfleet": {"algorithm": "blackfleet", "vehicles": 3, "vehicles_per_host": 2},
    "fedavg": {"algorithm": "fedavg", "vehicles": 3},
    "split": {"algorithm": "split"},
    "blackfed-v1": {"algorithm": "blackfed-v1", "vehicles_per_host": 2},
    "individual": {"algorithm": "individual"},
    "blackfleet, one encoder": {
        "algorithm": "blackfleet",
        "sharing.encoder": "weights",
        "local_loss.warm_up_epochs": 0,
        "blackfleet.serving": "latest",
    },
    "frozen": {"algorithm": "frozen"},
    "splitfed-v1": {"algorithm": "splitfed-v1"},
    "cse-fsl": {"algorithm": "cse-fsl"},
}
"""What each case puts over the settings that all share, by scenario key."""


def main() -> None:
    """Run seeds until the time is over; print the table of all that there are."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storm", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="no run is begun after so many (default 10)"
    )
    parser.add_argument("--first-seed", type=int, default=0, help="other machines take others (default 0)")
    parser.add_argument(
        "--seeds", type=int, default=10_000, help="at most so many from there (default 10000)"
    )
    parser.add_argument("--faults", type=int, default=24, help="from outside, in a run (default 24)")
    parser.add_argument("--limit-s", type=float, default=600.0, help="for a run (default 600)")
    parser.add_argument("--cases", type=some_of(CASES), default=tuple(CASES), help="some, with semicolons")
    parser.add_argument("--out", type=Path, default=Path("runs/storm"), help="folder of runs and results")
    parser.add_argument("--merge", type=Path, nargs="+", metavar="FILE", help="only add up these results")
    options = parser.parse_args()
    if options.merge:
        print_table(line for path in options.merge for line in read_results(path))
        return
    options.out = options.out.resolve()
    (options.out / "runs").mkdir(parents=True, exist_ok=True)
    results = options.out / _RESULTS
    done = {line["seed"] for line in read_results(results) if line.get("ended", True)}
    weather = Weather(faults=options.faults, within_share=0.4, limit_s=options.limit_s)
    context = forked()
    deadline = time.monotonic() + 60 * options.minutes
    console = Console(stderr=True, width=150)
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        if seed in done:
            continue
        if time.monotonic() > deadline:
            break
        case = options.cases[seed % len(options.cases)]
        outcome = _run(seed, case, options.out, weather, context)
        with results.open("a") as file:
            file.write(json.dumps(record(outcome)) + "\n")
        console.print(
            f"{seed} {case}: {outcome.faults.total()} faults, {outcome.seconds:.0f} s, "
            + _said(outcome)
            + (f"; {outcome.surprises}" if outcome.surprises else ""),
            highlight=False,
            markup=False,
        )
    print_table(read_results(results))


def _run(seed: int, case: str, out: Path, weather: Weather, context: Any) -> Outcome:
    template = undisturbed(out / "undisturbed" / file_name(case), CASES[case], context)
    folder = out / "runs" / f"{seed:06d}"
    clear(folder)
    storm = Storm(template, folder, seed, case, weather, context)
    try:
        outcome = storm.run()
    except Exception as error:
        outcome = storm.outcome
        outcome.differences.append(f"{type(error).__name__}: {error}")
        (folder / "storm.txt").write_text(traceback.format_exc())
    if outcome.same_bits and not outcome.surprises:
        clear(folder)
    return outcome


def _said(outcome: Outcome) -> str:
    if not outcome.ended:
        return "not ended when its time was over"
    return "same bits" if outcome.same_bits else f"NOT THE SAME: {outcome.differences[:5]}"


def read_results(path: Path) -> list[dict[str, Any]]:
    """The seeds that are finished; a line that was cut off is none."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def add_up(lines: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By case, and `all`: runs, how many had no end in time and how many ended with the same bits, and what
    struck; each seed once, as it was last."""
    once = {(line["seed"], line["case"]): line for line in lines}
    rows: dict[str, dict[str, Any]] = {}
    for line in once.values():
        for name in (line["case"], "all"):
            empty = {"runs": 0, "not_ended": 0, "same": 0, "surprises": 0, "faults": Counter()}
            row = rows.setdefault(name, empty)
            row["runs"] += 1
            row["not_ended"] += not line.get("ended", True)
            row["same"] += line["same_bits"]
            row["surprises"] += len(line["surprises"])
            row["faults"].update(line["faults"])
    return dict(sorted(rows.items(), key=lambda item: item[0] == "all"))


def print_table(lines: Iterable[dict[str, Any]]) -> None:
    """The table for people, and a JSON line."""
    rows = add_up(lines)
    table = Table(title="runs in a storm, compared with the same runs undisturbed")
    for column in ("case", "runs", "not ended", "same bits", "kills", "other faults", "odd ends"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for name, row in rows.items():
        kills, others = (_sum(row["faults"], kinds) for kinds in (KILLS, OTHERS))
        numbers = (row["runs"], row["not_ended"], row["same"], kills, others, row["surprises"])
        table.add_row(name, *map(str, numbers))
    Console(width=110).print(table)
    print(json.dumps({"benchmark": "storm", "cases": rows}))
    sys.stdout.flush()


def _sum(faults: Counter[str], kinds: Sequence[str]) -> int:
    return sum(faults[kind] for kind in kinds)


if __name__ == "__main__":
    main()
