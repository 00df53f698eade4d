"""Updates over a broker, of a vehicle and a cloud that are processes of their own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from brokers import running_broker
from fleet.update.sign import Wishes, put_into_run, sign_folder
from fleet_fixtures import CARS, FLEET, IMAGE_SIZE, TinyFleet, World
from process_fixtures import WAIT_S, module, start, wait_for

from edge_client.encoder.bundle import EncoderBundle, write_theta
from fleet import broker
from fleet.export.bundle import SPEC_NAME, byte_offsets, export_bundle
from protocol.openssl import run_openssl
from protocol.updates.container import pack, read_update
from protocol.updates.signature import PRIVATE_NAME, PUBLIC_NAME, make_key, public_key

pytestmark = pytest.mark.timeout(300)

CAR = CARS[0]


class Road:
    """A broker, a cloud and a vehicle, and the operator who sends updates."""

    def __init__(self, world: World, folder: Path, port: int) -> None:
        run_openssl("version", folder=Path())  # or say that it is missing
        self.fleet = TinyFleet(world, folder, vehicles=(CAR,), algorithm="blackfed-v1", rounds=500)
        self.folder = folder
        self.allowed = folder / "allowed"
        self.allowed.write_text("yes")
        make_key(folder)
        (folder / PUBLIC_NAME).write_bytes(public_key(folder / PRIVATE_NAME))
        self._url = f"mqtt://127.0.0.1:{port}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start_cloud(self, *options: str) -> None:
        path = self.folder / "cloud.json"
        path.write_bytes(msgspec.json.encode(self.fleet.config))
        self._start("cloud", "cloud_server", "--config", path, "--run-dir", self.fleet.run_folder, *options)

    def start_vehicle(self) -> None:
        host = msgspec.structs.replace(
            self.fleet.host(CAR), when=str(self.allowed), when_poll_s=0.05, connect_timeout_s=60
        )
        path = self.folder / "host.json"
        path.write_bytes(msgspec.json.encode(host))
        self._start("vehicle", "edge_client", "--config", path, "--update-key", self.folder / PUBLIC_NAME)

    def _start(self, name: str, program: str, *arguments: str | Path) -> None:
        command = module(program, "--broker", self._url, *arguments)
        self._processes[name] = start(command, self.folder / f"{name}.log")

    def kill(self, name: str) -> None:
        self._processes[name].kill()
        self._processes[name].wait()

    def end(self, name: str) -> int:
        return self._processes[name].wait(WAIT_S)

    def close(self) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()

    def send(self, bundle: Path, version: int, **changes: Any) -> None:
        """The operator signs a bundle and puts it into the run's folder."""
        wishes = Wishes(key=self.folder / PRIVATE_NAME, fleet=FLEET, version=version, **changes)
        sign_folder(bundle, wishes, self.folder / "update.bfu", lambda _: None)
        put_into_run(self.folder / "update.bfu", self.fleet.run_folder, "updates", lambda _: None)

    def send_unsigned(self, bundle: Path, version: int) -> None:
        """Somebody who has the run's folder and not the key."""
        self.send(bundle, version)
        found = read_update(self.folder / "update.bfu")
        contents = {file.name: (bundle / file.name).read_bytes() for file in found.manifest.files}
        [sent] = (self.fleet.run_folder / "updates").glob(f"*-{version}.bfu")
        sent.write_bytes(pack(found.signed, b"", contents))

    def events(self) -> list[dict[str, Any]]:
        """What the log tells of updates."""
        path = self.fleet.run_folder / "log.jsonl"
        return self.fleet.events("update") if path.exists() else []

    def until(self, state: str, version: int) -> dict[str, Any]:
        """The event that an update of this version is in this state, waited for."""

        def found() -> list[dict[str, Any]]:
            return [
                each for each in self.events() if (each["state"], each.get("version")) == (state, version)
            ]

        try:
            wait_for(lambda: bool(found()), f"version {version} {state}", 60)
        except AssertionError as error:
            logs = "\n".join(path.read_text()[-3000:] for path in sorted(self.folder.glob("*.log")))
            raise AssertionError(f"{error}\n{self.events()}\n{logs}") from error
        return found()[0]

    def record(self) -> dict[str, Any]:
        """What the vehicle knows of its updates."""
        path = self.fleet.state_folder(CAR) / "updates" / "record.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}


@pytest.fixture
def road(tiny_world: World, tmp_path: Path) -> Iterator[Road]:
    kind = "mosquitto" if broker.find_mosquitto() else "amqtt"
    with running_broker(kind, tmp_path / "broker") as port:
        made = Road(tiny_world, tmp_path, port)
        try:
            yield made
        finally:
            made.close()


def rewritten(bundle: Path, target: Path, change: Any) -> Path:
    """A bundle whose forward graphs are others; its checksums fit."""
    loaded = EncoderBundle.load(bundle)
    spec, graphs = loaded.spec, dict(loaded.spec.graphs)
    target.mkdir()
    theta = loaded.theta0
    for name, model in loaded.graphs.items():
        model, theta = change(loaded, name, model)
        offsets = byte_offsets(model, spec.parameters) if graphs[name].byte_offsets else ()
        (target / f"{name}.onnx").write_bytes(model)
        import hashlib

        graphs[name] = msgspec.structs.replace(
            graphs[name], sha256=hashlib.sha256(model).hexdigest(), byte_offsets=offsets
        )
    import hashlib

    spec = msgspec.structs.replace(
        spec, graphs=graphs, theta_sha256=hashlib.sha256(theta.astype("<f4").tobytes()).hexdigest()
    )
    (target / SPEC_NAME).write_bytes(msgspec.json.encode(spec))
    return target


def with_nan(bundle: EncoderBundle, name: str, model: bytes) -> tuple[bytes, np.ndarray]:
    theta = bundle.theta0.copy()
    theta[0] = np.nan
    return (
        write_theta(bundle.spec, name, model, theta) if bundle.spec.graphs[name].byte_offsets else model
    ), theta


def test_updates_are_refused_taken_back_and_used(road: Road, tiny_world: World, tmp_path: Path) -> None:
    better = tmp_path / "better"
    export_bundle("stride8-c4", better, image_size=IMAGE_SIZE, seed=5)
    broken = rewritten(tiny_world.bundle, tmp_path / "broken", with_nan)
    road.start_cloud()
    road.start_vehicle()

    road.send_unsigned(better, 7)
    assert "not signed" in road.until("refused", 7)["reason"]
    road.send(broken, 2)
    assert "not finite" in road.until("refused", 2)["reason"]

    # One that its process dies of in the first turn, each time.
    road.send(better, 3, name="deadly")
    road.until("trial", 3)
    road.allowed.write_text("no")
    print(road.record())
