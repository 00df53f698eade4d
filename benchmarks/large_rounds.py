"""A round of a large fleet by default settings: time, CPU seconds, memory, threads of all processes.

`python -m benchmarks.large_rounds` launches 1,000 vehicles that all take part, and 10,000 of which 200 do,
over a broker, each for a round; `--fleets 500;2000:100` others. All processes together are looked at every
few seconds. Finished ones are kept in `--out`, where the same command goes on. Prints a row a fleet, and a
JSON line.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cloud_server.run.results import RESULT_NAME
from protocol.atomic import write_json_atomic

_LOOK_S = 5.0
_MIB = 1024.0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A round of one fleet."""

    vehicles: int
    drawn: int
    wall_s: float
    cpu_s: float
    """Of all processes together."""
    hosts_mib: float
    """PSS of the vehicles' processes, together, at the most."""
    all_mib: float
    threads: int
    """At the most."""
    log_bytes: int
    local_miou: float


def main() -> int:
    """Measure what is not measured yet, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--fleets", default="1000;10000:200", help="VEHICLES or VEHICLES:DRAWN, split by ';' (default: both)"
    )
    parser.add_argument("--cores", type=int, help="to plan for (default: those that are usable)")
    parser.add_argument("--out", type=Path, default=Path("runs/large-rounds"), help="folder of the runs")
    options = parser.parse_args()
    rows = []
    for fleet in options.fleets.split(";"):
        vehicles, _, drawn = fleet.partition(":")
        kept = options.out / f"{fleet.replace(':', '-')}.json"
        if not kept.exists():
            row = measure(int(vehicles), int(drawn or vehicles), kept.with_suffix(""), options.cores)
            write_json_atomic(kept, asdict(row))
        rows.append(Measured(**json.loads(kept.read_text())))
    _print(rows)
    print(json.dumps({"benchmark": "large_rounds", "fleets": [asdict(row) for row in rows]}))
    return 0


def measure(vehicles: int, drawn: int, folder: Path, cores: int | None) -> Measured:
    """Launch a fleet for a round, or go on with it, and look at its processes until it has ended.

    Raises:
        SystemExit: the run failed; what it said stands above.
    """
    resumes = (folder / "scenario.yaml").exists()
    command = [sys.executable, "-m", "fleet.cli", "launch", f"--run-dir={folder}"]
    command += ["--resume"] if resumes else [f"--vehicles={vehicles}", "--rounds=1"]
    if not resumes and drawn < vehicles:
        command.append(f"--participation={drawn}")
    if not resumes and cores is not None:
        command.append(f"--set=cores={cores}")
    began, spent = time.monotonic(), _spent_s()
    hosts = everything = 0.0
    threads = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as launcher:
        while True:
            try:
                launcher.wait(_LOOK_S)
                break
            except subprocess.TimeoutExpired:
                seen = {name: _pss_mib(pid) for name, pid in _processes(folder, launcher.pid).items()}
                hosts = max(hosts, sum(mib for name, mib in seen.items() if name.startswith("host")))
                everything = max(everything, sum(seen.values()))
                threads = max(threads, sum(map(_threads, _processes(folder, launcher.pid).values())))
    if launcher.returncode:
        raise SystemExit(launcher.returncode)
    result = json.loads((folder / RESULT_NAME).read_text())
    return Measured(
        vehicles=vehicles,
        drawn=drawn,
        wall_s=time.monotonic() - began,
        cpu_s=_spent_s() - spent,
        hosts_mib=hosts,
        all_mib=everything,
        threads=threads,
        log_bytes=(folder / "log.jsonl").stat().st_size,
        local_miou=result["mean_local_miou"],
    )


def _spent_s() -> float:
    """CPU seconds of the processes that this one has started and that have ended, and of all below them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _processes(folder: Path, launcher: int) -> dict[str, int]:
    try:
        ids: dict[str, int] = json.loads((folder / "processes" / "processes.json").read_text())
    except OSError:
        ids = {}
    return {name: pid for name, pid in {**ids, "launcher": launcher}.items() if Path(f"/proc/{pid}").exists()}


def _pss_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0.0
    return sum(int(line.split()[1]) / _MIB for line in lines if line.startswith("Pss:"))


def _threads(pid: int) -> int:
    try:
        return len(list(Path(f"/proc/{pid}/task").iterdir()))
    except OSError:
        return 0


def _print(rows: list[Measured]) -> None:
    table = Table(
        "vehicles", "in the round", "wall", "CPU, s", "hosts, MiB", "all, MiB", "threads", "log, MB", "mIoU"
    )
    for row in rows:
        table.add_row(
            f"{row.vehicles:,}",
            f"{row.drawn:,}",
            f"{row.wall_s // 60:.0f}:{row.wall_s % 60:02.0f}",
            f"{row.cpu_s:.0f}",
            f"{row.hosts_mib:.0f}",
            f"{row.all_mib:.0f}",
            str(row.threads),
            f"{row.log_bytes / 1e6:.1f}",
            f"{row.local_miou:.3f}",
        )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
