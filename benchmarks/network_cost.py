"""What the network costs: the same run over MQTT and inside one process, for one vehicle and for four.

`python -m benchmarks.network_cost` prints a table and one JSON line. Both runs do the same arithmetic (their
mIoU must agree to the bit) with the same thread counts. Time counts from the moment that the whole fleet has
joined to the result, so that the start of processes does not hide what a message costs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cloud_server.config import ZerothOrderConfig, read_config
from cloud_server.run.results import RESULT_NAME
from cloud_server.storage.recorders import LOG_NAME
from edge_client.host import read_host_config
from fleet.run.in_process import run_in_process
from fleet.run.launch import launch
from fleet.scenario import DatasetPart, EvaluationPart, Scenario
from protocol.plans.first_order import FirstOrder

RATIO_TARGET = 1.25
FRAME_BYTES_TARGET = 6500
_FLEETS = (1, 4)
_COLUMNS = ("vehicles", "over MQTT / in process", "bytes a frame", "vehicle peak MB", "queries a second")


def main() -> None:
    """Run the benchmark and print its table and JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.network_cost", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs for each fleet (default 3)")
    parser.add_argument("--broker", default="auto", help="auto, mosquitto or amqtt")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="blackfleet-bench-") as folder:
        rows = [
            measure(vehicles, Path(folder), repeats=options.repeats, broker=options.broker)
            for vehicles in _FLEETS
        ]
    table = Table(title="cost of the network: 256x192, 8 bits, medians over pairs of runs")
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            str(row["vehicles"]),
            f"{row['wall_ratio']:.3f} ({row['wall_ratio_min']:.3f} to {row['wall_ratio_max']:.3f})",
            f"{row['bytes_per_frame']:.0f}",
            f"{row['vehicle_peak_mb']:.0f}",
            f"{row['queries_per_s']:.1f}",
        )
    console = Console()
    console.print(table)
    console.print(f"targets: ratio at most {RATIO_TARGET}, at most {FRAME_BYTES_TARGET} bytes a frame")
    print(json.dumps({"benchmark": "network_cost", "rows": rows}))


def measure(vehicles: int, folder: Path, *, repeats: int, broker: str) -> dict[str, Any]:
    """Alternate runs over MQTT and in one process; ratios are taken pair by pair."""
    ratios, memory_mb, speeds = [], [], []
    frame_bytes = 0.0
    for repeat in range(repeats):
        scenario = Scenario(
            algorithm="blackfed-v2",
            vehicles=vehicles,
            broker=broker,
            rounds=2,
            dataset=DatasetPart(root=str(folder / f"data-{vehicles}"), frames_per_sequence=40),
            zeroth_order=ZerothOrderConfig(batches=4),
            first_order=FirstOrder(epochs=4),
            evaluation=EvaluationPart(overlays=0),
        )
        over_mqtt = folder / f"{vehicles}-{repeat}-mqtt"
        with _PeakMemory(over_mqtt / "processes" / "processes.json") as peak:
            result = launch(scenario, over_mqtt, resume=False, console=Console(quiet=True))
        in_process = folder / f"{vehicles}-{repeat}-process"
        again = _run_in_process(over_mqtt, in_process)
        if again["mean_local_miou"] != result["mean_local_miou"]:
            raise AssertionError("the two runs did not do the same arithmetic")
        ratios.append(_run_seconds(over_mqtt) / _run_seconds(in_process))
        memory_mb.append(peak.highest_mb)
        speeds.append(_queries_per_second(over_mqtt))
        frame_bytes = _bytes_per_frame(result)
    return {
        "vehicles": vehicles,
        "wall_ratio": statistics.median(ratios),
        "wall_ratio_min": min(ratios),
        "wall_ratio_max": max(ratios),
        "bytes_per_frame": frame_bytes,
        "vehicle_peak_mb": statistics.median(memory_mb),
        "queries_per_s": statistics.median(speeds),
    }


def _run_in_process(prepared: Path, run_folder: Path) -> dict[str, Any]:
    """The run that `prepared` was launched with, on the in-memory bus."""
    hosts_folder = run_folder / "hosts"
    hosts_folder.mkdir(parents=True)
    hosts = []
    for path in sorted((prepared / "hosts").glob("host-*.json")):
        content = json.loads(path.read_text())
        for vehicle in content["vehicles"]:
            vehicle["state"] = str(run_folder / "vehicles" / vehicle["id"])
        (hosts_folder / path.name).write_text(json.dumps(content))
        hosts.append(read_host_config(hosts_folder / path.name))
    run_in_process(read_config(prepared / "cloud.json"), hosts, run_folder)
    result: dict[str, Any] = json.loads((run_folder / RESULT_NAME).read_text())
    return result


def _events(run_folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_folder / LOG_NAME).read_text().splitlines()]


def _run_seconds(run_folder: Path) -> float:
    times = {event["event"]: event["time"] for event in _events(run_folder)}
    return float(times["result"] - times["run"])


def _queries_per_second(run_folder: Path) -> float:
    """Queries over the time that vehicles had their turns, labels and uploads included."""
    turns = [e for e in _events(run_folder) if e["event"] == "turn_done" and e["kind"] == "train"]
    return float(sum(e["turn_queries"] for e in turns) / sum(e["vehicle_s"] for e in turns))


def _bytes_per_frame(result: Mapping[str, Any]) -> float:
    uploaded = sent = 0
    for entry in result["vehicles"].values():
        sent += entry["uplink_bytes_by_type"]["upload"]
        uploaded += result["rounds"] * (entry["frames_train"] + entry["frames_val"])
        uploaded += 2 * entry["frames_test"] + entry["frames_ood"]
    return sent / uploaded


class _PeakMemory:
    """Watches the highest resident memory of the vehicle processes that a file names."""

    def __init__(self, ids_path: Path) -> None:
        self._ids_path = ids_path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.highest_mb = 0.0

    def __enter__(self) -> _PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            try:
                ids = json.loads(self._ids_path.read_text())
                peaks = [_peak_mb(pid) for name, pid in ids.items() if name.startswith("host")]
            except (OSError, ValueError):
                continue  # not started yet, or ended already
            self.highest_mb = max([self.highest_mb, *peaks])


def _peak_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1000
    return 0.0


if __name__ == "__main__":
    main()
