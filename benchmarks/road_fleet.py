"""A fleet as it is on the road: mosquitto, a cloud and two vehicles, each a process that was started by hand.

What systemd would do on a car is done here: a process that ends with an error is started again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cloud_server.storage.checkpoint import load_checkpoint
from fleet import broker

CARS = ("car-1", "car-2")
FLEET = "road"
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
_WAIT_S = 1800.0
_POLL_S = 0.1
CLOUD_SETTINGS: Mapping[str, Any] = {
    "fleet": FLEET,
    "vehicles": CARS,
    "rounds": 2,
    "dataset": "cityscapes",
    "label_space": "cityscapes",
    "algorithm": "blackfleet",
    "local_loss": {"warm_up_epochs": 60, "epochs": 30},
    "first_order": {"epochs": 4, "batch_size": 8},
}


def run(*words: str | Path) -> None:
    """A command of the product that must succeed."""
    subprocess.run([sys.executable, "-m", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def prepare(folder: Path) -> None:
    """Drives, an encoder and a local head, by the commands that the documents name; once."""
    if (folder / "ready").exists():
        return
    size = ("--image-size", "128x96")
    for seed, car in enumerate(CARS):
        words = ("dataset", "generate", folder / car, "--cities", "1", "--frames", "20", *size)
        run("fleet.cli", *words, "--seed", str(seed))
    run("fleet.cli", "encoder", "export", folder / "bundle", "--encoder", "stride8-c8", *size)
    short = ("--frames-per-vehicle", "3", "--rounds", "1", "--foo-epochs", "1", "--warm-up-epochs", "0")
    once = ("--local-epochs", "1", "--run-dir", folder / "make-head")
    run("fleet.cli", "launch", "--algorithm", "blackfleet", "--vehicles", "1", *short, *once, *size)
    shutil.copytree(folder / "make-head" / "local_heads" / "stride8-c8", folder / "local_head")
    shutil.rmtree(folder / "make-head")
    (folder / "ready").touch()


class Line:
    """What a vehicle's packets go through; `cut`, it swallows them, as the air does, and nobody is told."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._open = threading.Event()
        self._open.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._open.clear()

    def mend(self) -> None:
        self._open.set()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        self._open.wait()
        try:
            server = socket.create_connection(("127.0.0.1", self._target_port))
        except OSError:
            client.close()
            return
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    self._open.wait()
                    sink.sendall(data)
        finally:
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()


class RoadFleet:
    """One run in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        shared: Path,
        *,
        patience: Mapping[str, Any],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder, self.shared = folder, shared
        self.port = broker.free_port()
        self.host, self.options = "127.0.0.1", ""
        """Of the broker's URL."""
        self.scheme = "mqtt"
        self.ports: dict[str, int] = {}
        """Where a vehicle's line to the broker begins, if it is not the broker's own port."""
        self.sources: dict[str, Path] = {}
        """By vehicle: the folder that its camera fills, instead of a data set."""
        self._environment = {**os.environ, **_ENVIRONMENT, **(environment or {})}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        settings = {**CLOUD_SETTINGS, "patience": {"on_failure": "wait", **patience}}
        (folder / "cloud.json").write_text(json.dumps(settings))

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def start(self, *names: str) -> None:
        """Start the broker, the cloud or vehicles; what was there before goes on where it was."""
        for name in names:
            environment = self._environment
            if name == "broker":
                environment = dict(os.environ)
            with self.log(name).open("ab") as file:
                self._processes[name] = subprocess.Popen(
                    self._command(name), stdout=file, stderr=file, env=environment
                )
            if name == "broker":
                self.wait_for(self._broker_listens, "the broker listens")

    def _command(self, name: str) -> list[str]:
        if name == "broker":
            own = self.folder / "ids" / "broker" / "mosquitto.conf"
            if own.exists():
                return ["/usr/sbin/mosquitto", "-c", str(own)]
            (self.folder / "broker").mkdir(exist_ok=True)
            return broker.broker_command("mosquitto", self.port, self.folder / "broker")
        port = self.ports.get(name, self.port)
        url = f"{self.scheme}://{self.host}:{port}{self.options}"
        if name == "cloud":
            words = ["--config", self.folder / "cloud.json", "--run-dir", self.folder / "run"]
            resume = ["--resume"] if (self.folder / "run" / "cloud" / "checkpoints").exists() else []
            return [sys.executable, "-m", "cloud_server", "--broker", url, *map(str, words), *resume]
        words = ["--fleet", FLEET, "--vehicle", name, "--bundle", self.shared / "bundle"]
        words += ["--local-head", self.shared / "local_head", "--state", self.folder / "state" / name]
        words += ["--encoder-mode", "rebuild"]
        source = self.sources.get(name)
        if source is None:
            words += ["--data-root", self.shared / name]
        else:
            words += ["--source", f"file://{source}", "--frames", "20"]
        return [sys.executable, "-m", "edge_client", "--broker", url, *map(str, words)]

    def _broker_listens(self) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        return False

    def kill(self, *names: str) -> None:
        """SIGKILL, all at once."""
        for name in names:
            self._processes[name].kill()
        for name in names:
            self._processes[name].wait()

    def hang_up(self, name: str) -> None:
        """SIGHUP: the broker reads its files again."""
        self._processes[name].send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """End whatever runs."""
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()

    def until(self, name: str, words: str, *, after: int = 0) -> None:
        """Wait until a log says these words, after so many bytes."""
        self.wait_for(lambda: words in self._said(name)[after:], f"{name} says {words!r}")

    def said_so_far(self, name: str) -> int:
        """For `until`."""
        return len(self._said(name))

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait, and do what systemd does meanwhile."""
        deadline = time.monotonic() + _WAIT_S
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.folder}: in vain until {what}")
            self._look_after()
            time.sleep(_POLL_S)

    def finish(self) -> None:
        """Wait until the run is over."""
        names = ("cloud", *CARS)
        self.wait_for(lambda: all(self._processes[name].poll() == 0 for name in names), "the run is over")

    def line(self, name: str, pattern: str) -> str:
        """The last line of a log that fits, without its time; an error where none does."""
        fitting = [line for line in self._said(name).splitlines() if re.search(pattern, line)]
        if not fitting:
            raise ValueError(f"{self.log(name)} has no line like {pattern!r}")
        return fitting[-1].replace(str(self.folder) + "/", "").replace(str(self.shared) + "/", "")

    def fingerprint(self) -> dict[str, str]:
        """Digests of all that was learnt, and the scores."""
        prints = {}
        for car in CARS:
            newest = max((self.folder / "state" / car).glob("turn-*.state"))
            prints[car] = hashlib.sha256(newest.read_bytes()).hexdigest()
        tensors, _ = load_checkpoint(self.folder / "run" / "cloud" / "checkpoints")
        for name, tensor in tensors.items():
            prints[name] = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        prints["mIoU"] = repr(self.result()["mean_local_miou"])
        return prints

    def result(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "run" / "result.json").read_text())
        return content

    def _said(self, name: str) -> str:
        path = self.log(name)
        return path.read_text(errors="replace") if path.exists() else ""

    def _look_after(self) -> None:
        for name, process in list(self._processes.items()):
            if name != "broker" and process.poll() not in (None, 0):
                time.sleep(1)
                self.start(name)
