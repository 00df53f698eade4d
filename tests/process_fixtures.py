"""Fleets of real processes for tests: tiny generated frames, the real command, real brokers.

One data set and one undisturbed run are made for the whole session and shared.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from cloud_server.storage.checkpoint import load_checkpoint, read_tensors

ROOT = Path(__file__).resolve().parents[1]
CARS = ("car-01", "car-02")
WAIT_S = 120.0
"""The longest that anything here may take on a busy machine; nothing waits so long when all is well."""

SCENARIO: Mapping[str, Any] = {
    "algorithm": "blackfed-v2",
    "vehicles": len(CARS),
    "rounds": 2,
    "image_size": "64x48",
    "cores": 2,
    "encoder": {"name": "stride8-c4", "mode": "rebuild"},
    # Few enough to be rendered without worker processes.
    "dataset": {"frames_per_sequence": 7},
    "first_order": {"epochs": 3, "batch_size": 4},
    "zeroth_order": {"batches": 2, "batch_size": 3},
    "spsa": {"queries": 1, "rate": 1e-3},
    "patience": {"join_s": 90, "retry_s": 0.3, "give_up_s": 90, "heartbeat_s": 0.5, "on_failure": "stop"},
}


def write_scenario(path: Path, data_root: Path, **changes: Any) -> Path:
    """A scenario file: `SCENARIO` with `changes`, whose tables are put over its tables."""
    content: dict[str, Any] = {**SCENARIO, "dataset": {**SCENARIO["dataset"], "root": str(data_root)}}
    for key, value in changes.items():
        content[key] = {**content.get(key, {}), **value} if isinstance(value, dict) else value
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path


def environment() -> dict[str, str]:
    """For processes that import the packages of this checkout, whatever is installed."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


def module(name: str, *arguments: str | Path) -> list[str]:
    """The command line of one of the product's modules."""
    return [sys.executable, "-m", name, *map(str, arguments)]


def start(
    command: Sequence[str], output: Path, *, limit_file_bytes: int | None = None
) -> subprocess.Popen[bytes]:
    """A process that writes all it says to `output`.

    `limit_file_bytes` stands for a full disk: no file that it or its children write may become larger.
    """

    def limit() -> None:
        if limit_file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_file_bytes, limit_file_bytes))

    with output.open("ab") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment(),
            preexec_fn=limit,
        )


def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run to the end; what it says is in `stdout` and `stderr`."""
    return subprocess.run(
        command, capture_output=True, text=True, timeout=WAIT_S, env=environment(), check=False, **options
    )


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    """Return as soon as `condition` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.01)


def is_alive(process_id: int) -> bool:
    """Whether a process of this id runs; one that has ended and waits to be reaped doesn't."""
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


class Launch:
    """One `blackfleet launch` in a run folder; may be run several times, resuming."""

    def __init__(self, run_folder: Path, scenario: Path) -> None:
        self.run_folder = run_folder
        self.scenario = scenario
        self.output = run_folder.with_name(f"{run_folder.name}.out")
        self.process: subprocess.Popen[bytes] | None = None
        self._read = 0

    def start(self, *options: str, limit_file_bytes: int | None = None) -> Launch:
        """Start the launcher; `limit_file_bytes` as for `start`."""
        arguments = ("launch", "--scenario", self.scenario, "--run-dir", self.run_folder, *options)
        self.process = start(module("fleet.cli", *arguments), self.output, limit_file_bytes=limit_file_bytes)
        return self

    def wait(self) -> int:
        """The exit code."""
        assert self.process is not None
        return self.process.wait(WAIT_S)

    def complete(self) -> Launch:
        """Wait until the run has ended well."""
        code = self.wait()
        assert code == 0, self.report()
        return self

    def report(self) -> str:
        """All that was said, for the message of a failed test."""
        logs = sorted((self.run_folder / "processes").glob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in [self.output, *logs])

    def stop(self) -> None:
        """End what still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def end_by(self, number: signal.Signals) -> None:
        """Send the launcher a signal; it must end with code 130, and one line that says how to go on."""
        said = self.output.read_text()
        assert self.process is not None
        self.process.send_signal(number)
        assert self.wait() == 130, self.report()
        news = self.output.read_text()[len(said) :]
        assert "Traceback" not in news
        by = "" if number is signal.SIGINT else f" by {number.name}"
        go_on = f"go on with: blackfleet launch --resume --run-dir {self.run_folder}"
        assert news.splitlines()[-1] == f"blackfleet: stopped{by}; {go_on}"

    def ids(self) -> dict[str, int]:
        """Process ids by name in the launcher's table."""
        path = self.run_folder / "processes" / "processes.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def kill(self, *names: str) -> None:
        """SIGKILL processes of the fleet; returns when the launcher has started them again."""
        ids = self.ids()
        for name in names:
            os.kill(ids[name], signal.SIGKILL)
        wait_for(
            lambda: self._ended() or all(self.ids()[name] != ids[name] for name in names),
            f"{', '.join(names)} started again",
        )

    def _ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def follow(self) -> Iterator[dict[str, Any]]:
        """The events of `log.jsonl` as they are written, until the launcher ends."""
        path = self.run_folder / "log.jsonl"
        deadline = time.monotonic() + WAIT_S
        while True:
            ended = self._ended()
            content = path.read_bytes() if path.exists() else b""
            lines = content[self._read :].splitlines(keepends=True)
            for line in lines:
                if line.endswith(b"\n"):
                    self._read += len(line)
                    yield json.loads(line)
            if ended:
                return
            assert time.monotonic() < deadline, f"no end within {WAIT_S:g} s\n{self.report()}"
            time.sleep(0.005)

    def until(self, name: str, **fields: Any) -> None:
        """Wait for an event of this name with these fields."""
        for event in self.follow():
            if matches(event, name, fields):
                return
        raise AssertionError(f"ended without an event {name} {fields}\n{self.report()}")

    def result(self) -> dict[str, Any]:
        return dict(json.loads((self.run_folder / "result.json").read_text()))


def matches(event: Mapping[str, Any], name: str, fields: Mapping[str, Any]) -> bool:
    """Whether an event has this name and these fields."""
    return event["event"] == name and all(event.get(key) == value for key, value in fields.items())


def learnt(run_folder: Path) -> dict[str, str]:
    """Digests of all that a run has learnt: vehicles' states, the cloud's tensors, v2's best weights."""
    digests = {}
    for folder in sorted((run_folder / "vehicles").iterdir()):
        newest = max(folder.glob("turn-*.state"))
        digests[f"{folder.name} {newest.name}"] = hashlib.sha256(newest.read_bytes()).hexdigest()
    tensors, meta = load_checkpoint(run_folder / "cloud" / "checkpoints")
    digests |= _digests("cloud", tensors)
    for vehicle, turn_id in meta["algorithm"]["best"].items():
        weights, about = read_tensors(run_folder / "cloud" / "best" / vehicle / f"{turn_id}.safetensors")
        digests |= _digests(f"best of {vehicle} {about}", weights)
    return digests


def _digests(whose: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Of the tensors' bytes: in their files, the order of the meta data is not fixed."""
    return {
        f"{whose} {name}": hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
        for name, tensor in sorted(tensors.items())
    }


Refuse = Callable[..., str]
"""Runs `blackfleet` with arguments, checks that it refuses, and gives its one line."""


def one_line(text: str, beginning: str) -> str:
    """The only line of `text`."""
    lines = text.splitlines()
    assert len(lines) == 1, text
    assert lines[0].startswith(beginning), text
    return lines[0]
