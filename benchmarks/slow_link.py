"""What a slow, late and breaking line costs: nothing but time.

`python -m benchmarks.slow_link` runs two vehicles with CamVid's features behind lines of 60, 30 and 10 kB/s
with 300 ms of delay each way, also cut every 20 s, and five vehicles that fetch and send networks of 20 and
110 MB (`fedavg`). The cloud stands beside the broker. Each run is compared with the same run without a line:
the bits of all that was learnt, the uplink's bytes, and how often each request came to the broker. It prints
a table and a JSON line; finished runs are kept in `--out`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.camvid import camvid_folder
from benchmarks.options import some_of
from benchmarks.runs import Run, finish
from benchmarks.slow_line import SlowLine
from cloud_server.config import read_config
from cloud_server.networks.compact import CompactNetwork
from cloud_server.networks.spec import NetworkSpec
from cloud_server.storage.checkpoint import load_checkpoint
from edge_client.host import read_host_config
from fleet import broker
from protocol.atomic import write_json_atomic
from protocol.local_model import FOLDER_NAME
from protocol.messages import Request, Up
from protocol.mqtt.broker_url import BROKER_VARIABLE
from protocol.mqtt.transport import MqttTransport, NetworkLoop
from protocol.seal_files import FOLDER_NAME as SEALS
from protocol.session import topics
from protocol.session.parts import PartsError, read_word
from protocol.session.reassembly import Reassembler
from protocol.session.seal import without_seal
from protocol.session.transport import Delivery

_RECORD = "line.json"
_LIMIT_BYTES = 1 << 28
_DELAY_S = 0.3

FEATURES: dict[str, Any] = {
    "algorithm": "blackfed-v2",
    "vehicles": 2,
    "rounds": 1,
    "dataset.frames_per_vehicle": 60,
    "zeroth_order.batches": 2,
    "first_order.epochs": 2,
}
WEIGHTS: dict[str, Any] = {
    "algorithm": "fedavg",
    "vehicles": 5,
    "rounds": 1,
    "dataset.partition": "uniform",
    "dataset.frames_per_vehicle": 8,
    "first_order.epochs": 1,
    "federated.optimizer": "sgd",
    "federated.deadline_s": None,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "features": FEATURES,
    "weights of 20 MB": {**WEIGHTS, "network.name": "benchmarks.slow_link:network_of_20_mb"},
    "weights of 110 MB": {**WEIGHTS, "network.name": "benchmarks.slow_link:network_of_110_mb"},
}
"""What each kind of run puts over the embedded defaults, by scenario key."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run behind a line."""

    kind: str
    kb_s: int
    """Of each vehicle's line, each way."""
    cut_s: float | None = None

    @property
    def name(self) -> str:
        """As in the table."""
        return f"{self.kind}, {self.kb_s} kB/s" + (f", cut every {self.cut_s:g} s" if self.cut_s else "")


CASES = {
    case.name: case
    for case in (
        *(Case(kind="features", kb_s=rate) for rate in (60, 30, 10)),
        *(Case(kind="features", kb_s=rate, cut_s=20) for rate in (60, 30, 10)),
        Case(kind="weights of 20 MB", kb_s=1000),
        Case(kind="weights of 20 MB", kb_s=1000, cut_s=20),
        Case(kind="weights of 110 MB", kb_s=4000),
        Case(kind="weights of 110 MB", kb_s=4000, cut_s=20),
    )
}


class WideNetwork(nn.Module):
    """The compact network, and beside it a layer that is wide, of little use and quickly computed."""

    def __init__(self, spec: NetworkSpec, megabytes: int) -> None:
        super().__init__()
        self.compact = CompactNetwork(spec)
        channels = spec.feature_shape[0]
        width = megabytes * 10**6 // 4 // (channels + spec.num_classes + 1)
        self.wide = nn.Sequential(
            nn.Linear(channels, width), nn.ReLU(), nn.Linear(width, spec.num_classes, bias=False)
        )

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Return logits_BKhw, float32."""
        shift_BK11: Tensor = 0.01 * self.wide(features_BCHW.mean((2, 3)))[:, :, None, None]
        logits_BKhw: Tensor = self.compact(features_BCHW) + shift_BK11
        return logits_BKhw


def network_of_20_mb(spec: NetworkSpec) -> nn.Module:
    """20 MB of parameters."""
    return WideNetwork(spec, 20)


def network_of_110_mb(spec: NetworkSpec) -> nn.Module:
    """110 MB of parameters."""
    return WideNetwork(spec, 110)


@dataclass
class Watcher:
    """Listens beside the broker: how often each request of a vehicle came there."""

    requests: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    """By vehicle, grant and step."""
    recalls: int = 0
    _parts: Reassembler = field(default_factory=lambda: Reassembler(_LIMIT_BYTES, 8))
    _decoder: msgspec.msgpack.Decoder[Up] = field(default_factory=lambda: msgspec.msgpack.Decoder(Up))

    def __call__(self, delivery: Delivery) -> None:
        if read_word(delivery.payload) is not None:
            return
        try:
            payload = self._parts.feed(delivery.topic, delivery.payload)
        except PartsError:
            return
        if payload is None:
            return
        address = topics.parse(delivery.topic)
        message = self._decoder.decode(without_seal(address.channel, address.vehicle, payload))
        if isinstance(message, Request):
            self.requests[message.vehicle, message.grant, message.step] += 1
        else:
            self.recalls += type(message).__name__ == "Recall"


def run_behind_a_line(
    reference: Path,
    folder: Path,
    *,
    bytes_per_s: float | None,
    delay_s: float = _DELAY_S,
    cut_s: float | None = None,
    kind: str = "auto",
) -> dict[str, Any]:
    """The run of a finished run folder once more, its vehicles behind a line; returns what was counted.

    Raises:
        RuntimeError: a process failed; its output lies in `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = broker.free_port()
    began = time.monotonic()
    watcher = Watcher()
    with ExitStack() as stack:
        stack.enter_context(
            _process(broker.broker_command(broker.choose_kind(kind), port, folder), folder / "broker.log")
        )
        broker.wait_ready(broker.HOST, port, 30)
        line = stack.enter_context(SlowLine(port, bytes_per_s=bytes_per_s, delay_s=delay_s, cut_s=cut_s))
        loop = stack.enter_context(NetworkLoop())
        ear = MqttTransport(broker.broker_url(port), "watcher", loop=loop)
        ear.subscribe(topics.topic_filter(topics.UP, read_config(reference / "cloud.json").fleet), watcher)
        stack.callback(ear.close)
        ear.connect(30)
        vehicles = [
            stack.enter_context(
                _process(
                    _module("edge_client", "--config", host),
                    folder / f"{host.stem}.log",
                    broker.broker_url(line.port),
                )
            )
            for host in _hosts(reference, folder)
        ]
        cloud = stack.enter_context(_cloud(reference, folder, port))
        while cloud.poll() is None:
            if any(vehicle.poll() not in (None, 0) for vehicle in vehicles):
                raise RuntimeError(f"a vehicle failed: {folder}")
            time.sleep(0.2)
        if cloud.returncode:
            raise RuntimeError(f"the cloud failed: {folder}")
    return {
        "seconds": round(time.monotonic() - began, 1),
        "cuts": line.cuts,
        "requests": len(watcher.requests),
        "requests_sent": watcher.requests.total(),
        "recalls": watcher.recalls,
    }


def _hosts(reference: Path, folder: Path) -> Iterator[Path]:
    """The settings of the reference's vehicles, with folders of their own."""
    for path in sorted((reference / "hosts").glob("host-*.json")):
        host = read_host_config(path)
        vehicles = tuple(
            msgspec.structs.replace(
                vehicle,
                state=str(folder / "vehicles" / vehicle.id),
                predictions={split: str(folder / split / vehicle.id) for split in vehicle.predictions},
            )
            for vehicle in host.vehicles
        )
        own = folder / path.name
        write_json_atomic(own, msgspec.to_builtins(msgspec.structs.replace(host, vehicles=vehicles)))
        yield own


@contextmanager
def _cloud(reference: Path, folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    model = folder / FOLDER_NAME
    if (reference / FOLDER_NAME).exists() and not model.exists():
        model.symlink_to((reference / FOLDER_NAME).resolve())
    seals = ("--seals", reference / SEALS)  # which the vehicles' settings name, too
    command = _module("cloud_server", "--config", reference / "cloud.json", "--run-dir", folder, *seals)
    with _process(command, folder / "cloud.log", broker.broker_url(port)) as process:
        yield process


@contextmanager
def _process(command: list[str], log: Path, url: str = "") -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, BROKER_VARIABLE: url}
        )
        try:
            yield process
        finally:
            try:
                process.wait(15 if url else 0)
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()


def _module(name: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", name, *map(str, arguments)]


def learnt(run_folder: Path) -> dict[str, str]:
    """Digests of all that a run has learnt, by name."""
    tensors, _ = load_checkpoint(run_folder / "cloud" / "checkpoints")
    digests = {
        name: hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
        for name, tensor in tensors.items()
    }
    for vehicle in sorted((run_folder / "vehicles").iterdir()):
        for state in sorted(vehicle.glob("turn-*.state"))[-1:]:
            digests[f"{vehicle.name} {state.name}"] = hashlib.sha256(state.read_bytes()).hexdigest()
    return digests


def compare(reference: Path, folder: Path, counted: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table."""
    wanted, result = (json.loads((each / "result.json").read_text()) for each in (reference, folder))
    return {
        **counted,
        "same_bits": learnt(reference) == learnt(folder) and wanted["confusion"] == result["confusion"],
        "uplink_bytes": result["uplink_bytes"],
        "uplink_ratio": result["uplink_bytes"] / wanted["uplink_bytes"],
        "downlink_ratio": result["downlink_bytes"] / wanted["downlink_bytes"],
        "repeated_bytes": sum(entry["repeated_bytes"] for entry in result["vehicles"].values()),
    }


def print_table(rows: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """One line a case."""
    table = Table(
        "run",
        "time",
        "cuts",
        "requests",
        "sent",
        "recalls",
        "uplink",
        "of the undisturbed",
        "came again",
        "same bits",
    )
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['seconds']:.0f} s",
            str(row["cuts"]),
            str(row["requests"]),
            str(row["requests_sent"]),
            str(row["recalls"]),
            f"{row['uplink_bytes'] / 1e6:.2f} MB",
            f"{row['uplink_ratio']:.4f}",
            f"{row['repeated_bytes'] / 1e3:.0f} kB",
            "yes" if row["same_bits"] else "NO",
        )
    console.print(table)


def main() -> None:
    """Run what is not done yet; print the table and a JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slow_link", description=__doc__)
    parser.add_argument("--data-root", type=Path, help="CamVid's folder (default: $BLACKFLEET_CAMVID)")
    parser.add_argument("--cases", type=some_of(CASES), default=tuple(CASES), help="by name, split by ';'")
    parser.add_argument("--out", type=Path, default=Path("runs/slow-link"), help="folder of the runs")
    options = parser.parse_args()
    root = str((options.data_root or camvid_folder()).resolve())
    chosen = {name: CASES[name] for name in options.cases}
    references = {
        kind: Run(
            folder=options.out / f"{kind.replace(' ', '-')}-undisturbed",
            settings={**SETTINGS[kind], "dataset.name": "camvid", "dataset.root": root},
        )
        for kind in dict.fromkeys(case.kind for case in chosen.values())
    }
    finish(list(references.values()), jobs=1)
    console = Console(stderr=True)
    rows = {}
    for name, case in chosen.items():
        folder = options.out / name.replace(", ", "-").replace(" ", "-").replace("/", "-")
        reference = references[case.kind].folder
        if not (folder / _RECORD).exists():
            console.print(f"{name} …")
            counted = run_behind_a_line(
                reference.resolve(), folder.resolve(), bytes_per_s=1000 * case.kb_s, cut_s=case.cut_s
            )
            write_json_atomic(folder / _RECORD, counted)
        rows[name] = compare(reference, folder, json.loads((folder / _RECORD).read_text()))
    print_table(rows, Console(width=140))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
