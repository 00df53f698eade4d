"""What vehicles that wait cost: the same rounds in a fleet of 4, and where 4 of 1,000 are drawn.

`python -m benchmarks.many_vehicles` launches both fleets in turn, each over a broker, with vehicles in two
processes, on frames drawn beforehand. Prints of each the rounds' time and CPU seconds, all processes
together, the memory of the two vehicle processes (PSS), threads, and the log's bytes; then their ratios and
what each further vehicle takes; and a JSON line. A first-order or local step is the same work in both.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cloud_server.algorithms.participation import drawn_vehicles
from fleet.frames.allocation import allocate, open_data
from fleet.scenario import Scenario, load_scenario

_DRAWN = 4
_SETTINGS: Mapping[str, Any] = {
    "algorithm": "blackfleet-no-feedback",
    "participation": _DRAWN,
    "dataset.frames_per_vehicle": 3,
    "dataset.partition": "uniform",
    "evaluation.vehicles": 2,
    "evaluation.ood_frames": 1,
    "evaluation.overlays": 0,
    "local_loss.warm_up_epochs": 8,
    "local_loss.epochs": 8,
    "first_order.epochs": 3,
    "cores": 2,
}
_POLL_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Moment:
    """How much has been used up to a moment of a run."""

    at_s: float
    cpu_s: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run."""

    vehicles: int
    rounds_s: float
    cpu_s: float
    hosts_mib: float
    processes_mib: float
    threads: int
    log_bytes: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vehicles", type=int, default=1000, help="of the large fleet (default 1000)")
    parser.add_argument("--rounds", type=int, default=10, help="of each run (default 10)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each fleet, in turn (default 3)")
    options = parser.parse_args(arguments)
    runs: list[Measured] = []
    with tempfile.TemporaryDirectory() as folder:
        scenarios = {
            vehicles: _scenario(vehicles, options.rounds, Path(folder) / f"frames-{vehicles}")
            for vehicles in (_DRAWN, options.vehicles)
        }
        for scenario in scenarios.values():
            _draw_frames(scenario)
        for number in range(options.repeats):
            for vehicles, scenario in scenarios.items():
                runs.append(_measure(scenario, Path(folder) / f"run-{vehicles}-{number}"))
    summary = summarise(runs, few=_DRAWN, many=options.vehicles)
    _print(runs, summary)
    print(json.dumps({"runs": [vars(run) for run in runs], **summary}))
    return 0


def summarise(runs: Sequence[Measured], *, few: int, many: int) -> dict[str, float]:
    """Medians of the large fleet against those of the small one."""

    def median(vehicles: int, name: str) -> float:
        return statistics.median(getattr(run, name) for run in runs if run.vehicles == vehicles)

    more = many - few
    return {
        "speed": median(few, "rounds_s") / median(many, "rounds_s"),
        "speed_by_cpu": median(few, "cpu_s") / median(many, "cpu_s"),
        "mib_a_vehicle": (median(many, "hosts_mib") - median(few, "hosts_mib")) / more,
        "mib_a_vehicle_in_all": (median(many, "processes_mib") - median(few, "processes_mib")) / more,
        "threads": median(many, "threads"),
        "log_bytes_a_vehicle": (median(many, "log_bytes") - median(few, "log_bytes")) / more,
    }


def _scenario(vehicles: int, rounds: int, frames: Path) -> Scenario:
    changes = {**_SETTINGS, "vehicles": vehicles, "rounds": rounds, "dataset.root": str(frames)}
    return load_scenario(None, changes | {"vehicles_per_host": -(-vehicles // 2)})


def _draw_frames(scenario: Scenario) -> None:
    """Read those of the vehicles that will be drawn, so that no turn has to draw one."""
    source = open_data(scenario, Path(scenario.dataset.root or ""), Console(quiet=True))
    refs, config = {ref.key: ref for ref in source.refs}, scenario.cloud_config()
    used = set(scenario.evaluated_vehicles)
    for number in range(1, scenario.rounds + 1):
        used.update(drawn_vehicles(config, number))
    for vehicle, share in allocate(scenario, source).items():
        if vehicle in used:
            for key in (*share.train, *share.val, *share.test):
                source.load(refs[key])


def _measure(scenario: Scenario, folder: Path) -> Measured:
    """Launch a run, and look at it when its rounds begin and when they are over."""
    settings = {**_SETTINGS, "vehicles_per_host": scenario.per_host}
    command = [sys.executable, "-m", "fleet.cli", "launch", "--run-dir", str(folder)]
    command += [f"--vehicles={scenario.vehicles}", f"--rounds={scenario.rounds}"]
    command += [f"--data-root={scenario.dataset.root}"]
    command += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as launcher:
        try:
            begun: Moment | None = None
            for event in _events(folder / "log.jsonl", launcher):
                if event["event"] != "committed":
                    continue
                if event["kind"] == "initial":
                    begun = _moment(folder, launcher.pid)
                elif event["round"] == scenario.rounds:
                    break
            assert begun is not None, f"the run has ended without its rounds, see {folder}"
            over = _moment(folder, launcher.pid)
            ids = _processes(folder, launcher.pid)
            return Measured(
                vehicles=scenario.vehicles,
                rounds_s=over.at_s - begun.at_s,
                cpu_s=over.cpu_s - begun.cpu_s,
                hosts_mib=sum(_pss_mib(pid) for name, pid in ids.items() if name.startswith("host")),
                processes_mib=sum(map(_pss_mib, ids.values())),
                threads=sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in ids.values()),
                log_bytes=(folder / "log.jsonl").stat().st_size,
            )
        finally:
            launcher.send_signal(signal.SIGINT)
            launcher.wait()


def _events(log: Path, launcher: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    while not log.exists() and launcher.poll() is None:
        time.sleep(_POLL_S)
    with log.open() as lines:
        rest = ""
        while launcher.poll() is None:
            rest += lines.readline()
            if rest.endswith("\n"):
                yield json.loads(rest)
                rest = ""
            else:
                time.sleep(_POLL_S)


def _processes(folder: Path, launcher: int) -> dict[str, int]:
    ids: dict[str, int] = json.loads((folder / "processes" / "processes.json").read_text())
    return {**ids, "launcher": launcher}


def _moment(folder: Path, launcher: int) -> Moment:
    ticks = 0
    for pid in _processes(folder, launcher).values():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return Moment(at_s=time.monotonic(), cpu_s=ticks / os.sysconf("SC_CLK_TCK"))


def _pss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("every process has a PSS")


def _print(runs: Sequence[Measured], summary: Mapping[str, float]) -> None:
    table = Table("vehicles", "rounds, s", "CPU, s", "hosts, MiB", "all, MiB", "threads", "log, kB")
    for run in sorted(runs, key=lambda run: run.vehicles):
        table.add_row(
            str(run.vehicles),
            f"{run.rounds_s:.1f}",
            f"{run.cpu_s:.1f}",
            f"{run.hosts_mib:.0f}",
            f"{run.processes_mib:.0f}",
            str(run.threads),
            f"{run.log_bytes / 1000:.0f}",
        )
    console = Console()
    console.print(table)
    console.print(
        f"steps a second against the small fleet: {summary['speed']:.2f}, "
        f"by CPU {summary['speed_by_cpu']:.2f}; "
        f"a further vehicle: {1024 * summary['mib_a_vehicle']:.0f} KiB in its process, "
        f"{1024 * summary['mib_a_vehicle_in_all']:.0f} KiB in all, "
        f"{summary['log_bytes_a_vehicle']:.0f} bytes of log",
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main())
