"""Mutated real messages, by the million: no decoder crashes, nothing grows, and a fleet ends as without them.

`python -m benchmarks.fuzz decoders --minutes 20` changes recorded messages and their pieces, and gives them
to each decoder of what crosses the network. Inputs that bring a new outcome, or reach a new line of
`protocol` (one input in 16 is traced), are kept and changed further. `python -m benchmarks.fuzz broker`
sends such messages over a real broker to a cloud and vehicles at work, as each of them and as strangers, and
compares the end of the run with that of the same run without them. Results are lines of `OUT/fuzz.jsonl`;
`--merge` adds up those of several machines, which take other `--first-seed`s.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.fuzz_fleet import record_runs, run_under_fire
from benchmarks.fuzz_targets import (
    REFUSALS,
    Target,
    mutate,
    read_recorded,
    seeds,
    targets,
    write_recorded,
)
from benchmarks.small_fleets import forked

_RESULTS = "fuzz.jsonl"
_TRACED_OF = 16
_BATCH = 50_000
_MOST_KEPT = 3_000
_NUMBER = re.compile(r"\d+|'[^']*'|`[^`]*`")
_OURS = f"{Path(__file__).resolve().parents[1] / 'protocol'}"


def main() -> None:
    """Fuzz for a while; print the table of all that was done."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("what", choices=("decoders", "broker"), nargs="?", default="decoders")
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="nothing is begun after so many (default 10)"
    )
    parser.add_argument("--first-seed", type=int, default=0, help="other machines take others (default 0)")
    parser.add_argument(
        "--per-second", type=int, default=1500, help="messages over the broker (default 1500)"
    )
    parser.add_argument(
        "--per-run",
        type=int,
        default=100_000,
        help="of them in one run, which then ends in peace (default 100000)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/fuzz"), help="folder of recordings and results"
    )
    parser.add_argument("--merge", type=Path, nargs="+", metavar="FILE", help="only add up these results")
    options = parser.parse_args()
    if options.merge:
        print_table(line for path in options.merge for line in read_results(path))
        return
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / _RESULTS
    done = {(line["what"], line["seed"]) for line in read_results(results)}
    recorded = options.out / "recorded.msgpack"
    if not recorded.exists():
        record_runs(options.out / "recorded", recorded, forked())
    deadline = time.monotonic() + 60 * options.minutes
    seed = options.first_seed
    begin = seeds(read_recorded(recorded)) if options.what == "decoders" else {}
    while time.monotonic() < deadline:
        if (options.what, seed) not in done:
            if options.what == "decoders":
                line = fuzz_decoders(begin, options.out / "corpus", seed, deadline)
            else:
                line = run_under_fire(recorded, options.out, seed, options.per_second, options.per_run)
            with results.open("a") as file:
                file.write(json.dumps({"what": options.what, "seed": seed, **line}) + "\n")
            print(line, file=sys.stderr, flush=True)
        seed += 1
    print_table(read_results(results))


@dataclass
class _Corpus:
    """Inputs worth changing, of one target."""

    inputs: list[bytes]
    outcomes: set[str] = field(default_factory=set)
    lines: set[tuple[CodeType, int]] = field(default_factory=set)

    def keep(self, data: bytes, draw: random.Random) -> None:
        if len(self.inputs) < _MOST_KEPT:
            self.inputs.append(data)
        else:
            self.inputs[draw.randrange(_MOST_KEPT)] = data


def fuzz_decoders(
    begin: Mapping[str, Sequence[bytes]], folder: Path, seed: int, deadline: float
) -> dict[str, Any]:
    """One round of all decoders, from real messages; what they have kept goes on in the next one."""
    draw = random.Random(f"{seed} decoders")
    before_mb = _resident_mb()
    counts: Counter[str] = Counter()
    refused = 0
    crashes: list[str] = []
    kept: Counter[str] = Counter()
    for name, target in targets().items():
        path = folder / f"{name}.msgpack"
        corpus = _Corpus([data for _, data in read_recorded(path)] if path.exists() else [])
        known = set(corpus.inputs)
        corpus.inputs += [data for data in begin[name] if data not in known]
        for _ in range(_BATCH):
            if counts[name] % 1000 == 0 and time.monotonic() > deadline:
                break
            data = mutate(draw.choice(corpus.inputs), corpus.inputs, draw)
            counts[name] += 1
            is_refused, outcome, lines = _try(target, data, traced=counts[name] % _TRACED_OF == 0)
            refused += is_refused
            if outcome.startswith("crash"):
                crashes.append(f"{name}: {outcome}: {data.hex()}")
            if outcome not in corpus.outcomes or not lines <= corpus.lines:
                corpus.outcomes.add(outcome)
                corpus.lines |= lines
                corpus.keep(data, draw)
        folder.mkdir(exist_ok=True)
        _write_corpus(path, corpus.inputs)
        kept[name] = len(corpus.inputs)
    return {
        "inputs": dict(counts),
        "refused": refused,
        "crashes": crashes,
        "kept": dict(kept),
        "resident_mb": [before_mb, _resident_mb()],
    }


def _try(target: Target, data: bytes, *, traced: bool) -> tuple[bool, str, set[tuple[CodeType, int]]]:
    """Whether it was refused, what came of it in words without numbers, and the lines that were reached."""
    lines: set[tuple[CodeType, int]] = set()
    if traced:
        sys.settrace(lambda frame, event, _: _local(frame, lines))
    try:
        outcome, is_refused = f"{target(data)}", False
    except REFUSALS as error:
        outcome, is_refused = f"{type(error).__name__}: {error}", True
    except Exception as error:  # what is looked for
        outcome, is_refused = f"crash {type(error).__name__}: {error}", False
    finally:
        if traced:
            sys.settrace(None)
    return is_refused, _NUMBER.sub("#", outcome[:300]), lines


def _local(frame: FrameType, lines: set[tuple[CodeType, int]]) -> Any:
    """Follow a call into our own code, line by line."""
    code = frame.f_code
    if not code.co_filename.startswith(_OURS):
        return None

    def line(frame: FrameType, event: str, _: object) -> Any:
        lines.add((code, frame.f_lineno))
        return line

    return line


def _write_corpus(path: Path, inputs: Iterable[bytes]) -> None:
    write_recorded(path, (("", data) for data in inputs))


def _resident_mb() -> float:
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")
    )
    return round(int(line.split()[1]) / 1024, 1)


def read_results(path: Path) -> list[dict[str, Any]]:
    """The rounds that are finished; a line that was cut off is none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def add_up(lines: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Of all rounds: what was given to whom, what came of it, and what it left; each seed once."""
    once = {(line["what"], line["seed"]): line for line in lines}
    decoders = [line for (what, _), line in once.items() if what == "decoders"]
    fleets = [line for (what, _), line in once.items() if what == "broker"]
    inputs: Counter[str] = Counter()
    for line in decoders:
        inputs.update(line["inputs"])
    return {
        "decoders": {
            "inputs": inputs.total(),
            "by_target": dict(inputs),
            "refused": sum(line["refused"] for line in decoders),
            "crashes": [crash for line in decoders for crash in line["crashes"]],
            "most_grown_mb": max(
                (line["resident_mb"][1] - line["resident_mb"][0] for line in decoders), default=0
            ),
        },
        "broker": {
            "runs": len(fleets),
            "same": sum(line["same"] for line in fleets),
            "sent": sum(line["sent"] for line in fleets),
            "refused": sum(line["refused"] for line in fleets),
            "crashes": [crash for line in fleets for crash in line["crashes"]],
            "cloud_mb": [max((line["cloud_mb"][side] for line in fleets), default=0) for side in (0, 1)],
            "vehicle_mb": [max((line["vehicle_mb"][side] for line in fleets), default=0) for side in (0, 1)],
            "log_kb": [max((line["log_kb"][side] for line in fleets), default=0) for side in (0, 1)],
        },
    }


def print_table(lines: Iterable[dict[str, Any]]) -> None:
    """The sums for people, and a JSON line."""
    sums = add_up(lines)
    table = Table(title="mutated messages")
    for column in ("", "inputs", "refused", "crashes", "memory", "log"):
        table.add_column(column, justify="left" if not column else "right")
    decoders, fleets = sums["decoders"], sums["broker"]
    grown = f"+{decoders['most_grown_mb']:.1f} MB at most"
    table.add_row(
        "decoders",
        f"{decoders['inputs']:,}",
        f"{decoders['refused']:,}",
        f"{len(decoders['crashes'])}",
        grown,
        "",
    )
    table.add_row(
        f"broker: {fleets['same']} of {fleets['runs']} runs with the same end",
        f"{fleets['sent']:,}",
        f"{fleets['refused']:,}",
        f"{len(fleets['crashes'])}",
        f"cloud {fleets['cloud_mb'][0]:.0f} → {fleets['cloud_mb'][1]:.0f} MB, "
        f"vehicle {fleets['vehicle_mb'][0]:.0f} → {fleets['vehicle_mb'][1]:.0f} MB",
        f"{fleets['log_kb'][0]:.0f} → {fleets['log_kb'][1]:.0f} kB",
    )
    Console(width=150).print(table)
    print(json.dumps({"benchmark": "fuzz", **sums}))


if __name__ == "__main__":
    main()
