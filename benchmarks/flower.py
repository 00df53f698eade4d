"""The same federated averaging here and in Flower's simulation engine: time, memory a client, time to start.

`python -m benchmarks.flower` installs Flower in an environment of its own (`--environment`, kept), then, for
10 and for 100 vehicles, runs `blackfleet launch --algorithm fedavg` on frames drawn beforehand, and then
`benchmarks.flower_app` in that environment: the same network, start weights, frames, batches, passes and
rates. It compares the weights that both end with and the scores between, and prints a table, ratios of Flower
to this project, and a JSON line; it fails if both have not computed the same. Memory is the sum of all
processes' proportional set sizes (PSS), seen every second, at its highest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file

from cloud_server.algorithms.fedavg import epoch_rate_shares
from fleet.frames.allocation import allocate, open_data
from fleet.scenario import Scenario, load_scenario
from protocol.local_model import FOLDER_NAME, LocalModel
from protocol.plans.federated import FederatedPlan

_INSTALLED = "flwr[simulation]"
_SAME_NUMBERS = ("numpy",)
"""Installed there in the version of `constraints.txt`; torch is the one of this environment."""
_TOLERANCE = 1e-2
"""Of weights, as a share of how far they have moved: averages are rounded otherwise, and AdamW makes whole
steps of rounding errors where a gradient is nothing else."""
_MIOU_TOLERANCE = 1e-3
_QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "OMP_WAIT_POLICY": "PASSIVE"}
_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run of one of the two."""

    system: str
    vehicles: int
    wall_s: float
    """From the start of its first process to the end of its last."""
    first_turn_s: float
    """To the first vehicle's turn, in which it scores the start weights."""
    first_step_s: float
    """To the first turn with steps."""
    steps_s: float
    """From there to its end."""
    processes: int
    peak_mib: float
    """Of all its processes."""

    @property
    def mib_a_client(self) -> float:
        """Everything, shared by the clients."""
        return self.peak_mib / self.vehicles


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vehicles", default="10,100", help="sizes of the fleet (default 10,100)")
    parser.add_argument("--rounds", type=int, default=2, help="of each run (default 2)")
    parser.add_argument("--epochs", type=int, default=2, help="passes of a turn (default 2)")
    parser.add_argument("--frames", type=int, default=4, help="of a vehicle, half to train on (default 4)")
    parser.add_argument("--image-size", default="64x48", help="in pixels (default 64x48)")
    parser.add_argument(
        "--environment", type=Path, default=Path("runs/flower-environment"), help="folder of Flower's own"
    )
    options = parser.parse_args(arguments)
    python = install(options.environment.resolve())
    runs: list[Measured] = []
    differences: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        for vehicles in map(int, options.vehicles.split(",")):
            folder = Path(name) / str(vehicles)
            settings = _settings(options, vehicles, folder / "frames")
            scenario = load_scenario(None, settings)
            _draw_frames(scenario, folder / "frames")
            runs.append(_measure_ours(settings, vehicles, folder))
            print(runs[-1], file=sys.stderr)
            runs.append(_measure_flower(python, scenario, folder))
            print(runs[-1], file=sys.stderr)
            differences[vehicles] = compare(folder / "run", folder / "flower")
    summary = summarise(runs)
    _print(runs, summary, differences)
    print(json.dumps({"runs": [asdict(run) for run in runs], "ratios": summary, "differences": differences}))
    return 0 if all(are_same(difference) for difference in differences.values()) else 1


def install(folder: Path) -> Path:
    """The Python of an environment with Flower, made now if it is not there.

    torch and what else the vehicle's code needs is found in this environment, after that one's own packages.

    Raises:
        SystemExit: pip can't install Flower; what it said is above.
    """
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if not ready.exists():
        constraints = (_ROOT / "constraints.txt").read_text().splitlines()
        pinned = [line for line in constraints if line.startswith(tuple(f"{n}==" for n in _SAME_NUMBERS))]
        (folder / "same.txt").parent.mkdir(parents=True, exist_ok=True)
        (folder / "same.txt").write_text("\n".join(pinned) + "\n")
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        command = [str(python), "-m", "pip", "install", "-q", _INSTALLED, *_SAME_NUMBERS]
        if subprocess.run([*command, "-c", str(folder / "same.txt")]).returncode != 0:
            raise SystemExit(f"{_INSTALLED} can't be installed in {folder}: see what pip said above")
        query = "import sysconfig; print(sysconfig.get_path('purelib'))"
        there = subprocess.run([python, "-c", query], check=True, capture_output=True, text=True).stdout
        Path(there.strip(), "zz_blackfleet.pth").write_text(sysconfig.get_path("purelib") + "\n")
        ready.touch()
    return python


def _settings(options: argparse.Namespace, vehicles: int, frames: Path) -> dict[str, Any]:
    return {
        "algorithm": "fedavg",
        "vehicles": vehicles,
        "rounds": options.rounds,
        "image_size": options.image_size,
        "cores": 2,
        "dataset.root": str(frames),
        "dataset.frames_per_vehicle": options.frames,
        "dataset.partition": "uniform",
        "dataset.parts": "50/25/25",
        "evaluation.ood_frames": 0,
        "evaluation.overlays": 0,
        "first_order.epochs": options.epochs,
    }


def _draw_frames(scenario: Scenario, folder: Path) -> None:
    """Read them all, so that neither system has to draw one."""
    source = open_data(scenario, folder, Console(quiet=True))
    refs = {ref.key: ref for ref in source.refs}
    for share in allocate(scenario, source).values():
        for key in (*share.train, *share.val, *share.test):
            source.load(refs[key])


def _measure_ours(settings: Mapping[str, Any], vehicles: int, folder: Path) -> Measured:
    command = [sys.executable, "-m", "fleet.cli", "launch", "--run-dir", str(folder / "run")]
    command += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    watched = _watch(command, folder / "launch.log")
    lines = (folder / "run" / "log.jsonl").read_text().splitlines()
    turns = [event for event in map(json.loads, lines) if event["event"] == "turn"]
    return watched.measured("blackfleet", vehicles, turns, scoring="initial")


def _measure_flower(python: Path, scenario: Scenario, folder: Path) -> Measured:
    out = folder / "flower"
    out.mkdir()
    config = scenario.cloud_config()
    first, federated = config.first_order, config.way(FederatedPlan)
    work = {
        "run": str(folder / "run"),
        "out": str(out),
        "seed": config.seed,
        "rates": [
            [first.rate * share for share in epoch_rate_shares(config, number)]
            for number in range(1, config.rounds + 1)
        ],
        "batch_size": first.batch_size,
        "optimizer": federated.optimizer,
        "momentum": federated.momentum,
        "weight_decay": first.weight_decay,
        "cores": scenario.cores,
    }
    (out / "work.json").write_text(json.dumps(work))
    code = "import sys; from benchmarks.flower_app import main; sys.exit(main())"
    watched = _watch([str(python), "-c", code, str(out / "work.json")], folder / "flower.log")
    moments = [json.loads(line) for line in (out / "moments.jsonl").read_text().splitlines()]
    return watched.measured("Flower", scenario.vehicles, moments, scoring="evaluate")


@dataclass(frozen=True, kw_only=True)
class _Watched:
    """What was seen of a command from outside."""

    began: float
    ended: float
    processes: int
    peak_mib: float

    def measured(
        self, system: str, vehicles: int, turns: Sequence[Mapping[str, Any]], *, scoring: str
    ) -> Measured:
        """With the moments that it noted itself: `time` in seconds since the epoch, and a `kind`."""

        def first(kind: str) -> float:
            return min(float(turn["time"]) for turn in turns if turn["kind"] == kind)

        return Measured(
            system=system,
            vehicles=vehicles,
            wall_s=self.ended - self.began,
            first_turn_s=first(scoring) - self.began,
            first_step_s=first("train") - self.began,
            steps_s=self.ended - first("train"),
            processes=self.processes,
            peak_mib=self.peak_mib,
        )


def _watch(command: Sequence[str], log: Path) -> _Watched:
    """Run a command, and look at its processes every second.

    Raises:
        SystemExit: it failed; what it printed is on the screen.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | _QUIET | {"PYTHONPATH": str(_ROOT)}
    peak, most, over = 0.0, 0, threading.Event()
    began = time.time()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=log.parent
        )

        def look() -> None:
            nonlocal peak, most
            while not over.wait(1.0):
                sizes = [size for pid in _tree(process.pid) if (size := _pss_mib(pid)) is not None]
                peak, most = max(peak, sum(sizes)), max(most, len(sizes))

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            status = process.wait()
        finally:
            over.set()
            watcher.join()
    ended = time.time()
    if status != 0:
        print(log.read_text()[-4000:], file=sys.stderr)
        raise SystemExit(f"{command[0]} ended with {status}; what it printed last is above")
    return _Watched(began=began, ended=ended, processes=most, peak_mib=peak)


def _tree(root: int) -> Iterator[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    todo = [root]
    while todo:
        yield (pid := todo.pop())
        todo += children.get(pid, [])


def _pss_mib(pid: int) -> float | None:
    """None: it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), None)


def compare(run: Path, flower: Path) -> dict[str, float]:
    """How far both are apart at the end: weights, validation of each round's start, test before and after."""
    last = sorted((run / "cloud" / "checkpoints").glob("*.safetensors"))[-1]
    ours = {name.removeprefix("global/"): array for name, array in load_file(last).items()}
    theirs = np.load(flower / "weights.npz", allow_pickle=False)
    assert set(ours) == set(theirs.files), "both have weights of one network"
    told = json.loads((flower / "flower.json").read_text())
    result = json.loads((run / "result.json").read_text())
    mious: dict[int, list[float]] = {}
    for event in map(json.loads, (run / "log.jsonl").read_text().splitlines()):
        if event["event"] == "validation":
            mious.setdefault(event["round"], []).append(event["miou"])
    start = LocalModel.load(run / FOLDER_NAME).weights
    differences = {
        "weights": max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours),
        "weights, of their way": _distance(ours, theirs) / _distance(ours, start),
        "test mIoU": abs(result["mean_local_miou"] - told["test_after"]),
        "start's test mIoU": abs(result["initial_local_miou"] - told["test_before"]),
    }
    for number, values in mious.items():
        name = f"validation mIoU, round {number}"
        differences[name] = abs(sum(values) / len(values) - told["rounds"][str(number)]["val_miou"])
    return differences


def _distance(some: Mapping[str, Any], others: Mapping[str, Any]) -> float:
    return float(np.sqrt(sum(np.square(array - others[name]).sum() for name, array in some.items())))


def are_same(differences: Mapping[str, float]) -> bool:
    """Whether both have computed the same, within tolerance."""
    scores = [value for name, value in differences.items() if "mIoU" in name]
    return differences["weights, of their way"] <= _TOLERANCE and max(scores) <= _MIOU_TOLERANCE


def summarise(runs: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """Ratios of Flower to this project by number of vehicles, and of what a further client takes."""
    by_size: dict[int, dict[str, Measured]] = {}
    for run in runs:
        by_size.setdefault(run.vehicles, {})[run.system] = run
    ratios = {
        str(vehicles): {
            name: getattr(pair["Flower"], name) / getattr(pair["blackfleet"], name)
            for name in ("wall_s", "first_turn_s", "first_step_s", "steps_s", "mib_a_client")
        }
        for vehicles, pair in by_size.items()
    }
    if len(by_size) > 1:
        few, many = min(by_size), max(by_size)
        ratios["MiB a further client"] = {
            system: (by_size[many][system].peak_mib - by_size[few][system].peak_mib) / (many - few)
            for system in ("blackfleet", "Flower")
        }
    return ratios


def _print(
    runs: Sequence[Measured],
    summary: Mapping[str, Mapping[str, float]],
    differences: Mapping[int, Mapping[str, float]],
) -> None:
    columns = ("wall, s", "first turn, s", "first step, s", "from there, s", "MiB", "MiB a client")
    table = Table("clients", "system", *columns, "processes")
    for run in runs:
        times = (run.wall_s, run.first_turn_s, run.first_step_s, run.steps_s)
        cells = [f"{value:.1f}" for value in times] + [f"{run.peak_mib:.0f}", f"{run.mib_a_client:.1f}"]
        table.add_row(str(run.vehicles), run.system, *cells, str(run.processes))
        if run.system == "Flower":
            ratio = summary[str(run.vehicles)]
            names = ("wall_s", "first_turn_s", "first_step_s", "steps_s", "mib_a_client", "mib_a_client")
            table.add_row("", "Flower / blackfleet", *(f"{ratio[name]:.2f}" for name in names), "")
    console = Console(width=130)
    console.print(table)
    if further := summary.get("MiB a further client"):
        console.print("a further client: " + ", ".join(f"{v:.2f} MiB {name}" for name, v in further.items()))
    for vehicles, values in differences.items():
        apart = ", ".join(f"{name} {value:.2g}" for name, value in values.items())
        verdict = "the same" if are_same(values) else "NOT the same"
        console.print(f"{vehicles} clients, {verdict}; apart by: {apart}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
