"""Updates over a broker, of a vehicle and a cloud that are processes of their own."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from brokers import running_broker
from fleet_fixtures import CARS, FLEET, IMAGE_SIZE, TinyFleet, World
from onnx import TensorProto, helper, numpy_helper
from process_fixtures import WAIT_S, is_alive, module, start, wait_for

from cloud_server.config import PatienceConfig
from datasets.catalog import open_dataset
from edge_client.encoder.bundle import EncoderBundle, read_theta, write_theta
from edge_client.frames import FrameCache
from edge_client.updates.store import MOST_DEATHS
from fleet import broker
from fleet.export.bundle import SPEC_NAME, byte_offsets, export_bundle
from fleet.provision.update import Wishes, put_into_run, sign_folder
from protocol.openssl import run_openssl
from protocol.update_file import pack, read_update
from protocol.update_signature import PRIVATE_NAME, PUBLIC_NAME, make_key, public_key

pytestmark = pytest.mark.timeout(300)

CAR = CARS[0]


class Road:
    """A broker, a cloud and a vehicle, and the operator who sends updates."""

    def __init__(self, world: World, folder: Path, port: int) -> None:
        run_openssl("version", folder=Path())  # or say that it is missing
        patience = PatienceConfig(join_s=90, retry_s=0.2, give_up_s=90, heartbeat_s=0.5, on_failure="stop")
        self.fleet = TinyFleet(
            world, folder, vehicles=(CAR,), algorithm="blackfed-v1", rounds=14, patience=patience
        )
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
            self.fleet.host(CAR, give_up_s=90), when=str(self.allowed), when_poll_s=0.05, connect_timeout_s=60
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
            assert all(each.poll() in (None, 0) for each in self._processes.values()), "a process has failed"
            self.let_it_drive(version)
            return [each for each in self.events() if is_state(each, state, version)]

        try:
            wait_for(lambda: bool(found()), f"version {version} {state}")
        except AssertionError as error:
            logs = "\n".join(path.read_text()[-3000:] for path in sorted(self.folder.glob("*.log")))
            raise AssertionError(f"{error}\n{self.events()}\n{logs}") from error
        return found()[0]

    def let_it_drive(self, version: int) -> None:
        """The vehicle waits in its turn while an update comes and is tried, so that the run lasts as long."""
        record = self.record()
        has_news = any(update[2] == version for update, _, _ in record.get("notes", ()))
        is_tried = record.get("staged") is not None and not self._has_children("vehicle")
        self.allow(has_news or is_tried or record.get("trial") is not None)

    def allow(self, may_work: bool) -> None:
        """Whether the vehicle may work."""
        if self.allowed.read_text() != (word := "yes" if may_work else "no"):
            self.allowed.write_text(word)

    def _has_children(self, name: str) -> bool:
        """Whether a process has others that run for it."""
        found = Path(f"/proc/{self._processes[name].pid}/task").glob("*/children")
        return any(is_alive(int(each)) for path in found for each in path.read_text().split())

    def until_at_work(self, deaths: int) -> None:
        """Wait until the vehicle is in a turn with an update that it has died of so many times, and hangs."""
        expected = {"kind": "bundle", "deaths": deaths, "at_work": True}
        begun = len(self.turns_begun())

        def is_at_work() -> bool:
            self.let_it_drive(0)
            return self.record().get("trial") == expected and len(self.turns_begun()) > begun

        wait_for(is_at_work, f"at work after {deaths} deaths")

    def turns_begun(self) -> list[str]:
        log = self.folder / "vehicle.log"
        return [line for line in log.read_text().splitlines() if "turn" in line and "begins" in line]

    def versions(self) -> list[Path]:
        """What is unpacked on the vehicle."""
        return list((self.fleet.state_folder(CAR) / "updates" / "versions").iterdir())

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


Change = Callable[[EncoderBundle, str], bytes]
"""The graph of a name, as it is to be."""


def rewritten(bundle: Path, target: Path, change: Change) -> Path:
    """A bundle whose graphs are others, and whose description fits them."""
    loaded = EncoderBundle.load(bundle)
    spec, graphs, theta = loaded.spec, dict(loaded.spec.graphs), loaded.theta0
    target.mkdir()
    for name, graph in graphs.items():
        model = change(loaded, name)
        (target / f"{name}.onnx").write_bytes(model)
        offsets = byte_offsets(model, spec.parameters) if graph.byte_offsets else ()
        graphs[name] = msgspec.structs.replace(
            graph, sha256=hashlib.sha256(model).hexdigest(), byte_offsets=offsets
        )
    spec = msgspec.structs.replace(spec, graphs=graphs)
    theta = read_theta(spec, "forward", (target / "forward.onnx").read_bytes())
    digest = hashlib.sha256(theta.astype("<f4").tobytes()).hexdigest()
    (target / SPEC_NAME).write_bytes(msgspec.json.encode(msgspec.structs.replace(spec, theta_sha256=digest)))
    return target


def with_nan(bundle: EncoderBundle, name: str) -> bytes:
    """A parameter is NaN."""
    theta = bundle.theta0.copy()
    theta[0] = np.nan
    return (
        write_theta(bundle.spec, name, bundle.graphs[name], theta)
        if bundle.spec.graphs[name].byte_offsets
        else bundle.graphs[name]
    )


def at_frame(pixel_sum: int, *, hangs: bool) -> Change:
    """Forward graphs that do what they did, but at the frame whose pixels have this sum: there they give NaN,
    or compute for years."""

    def change(bundle: EncoderBundle, name: str) -> bytes:
        if not name.startswith("forward"):
            return bundle.graphs[name]
        model = onnx.load_from_string(bundle.graphs[name])
        graph = model.graph
        [last] = [node for node in graph.node if "features_BCHW" in node.output]
        last.output[list(last.output).index("features_BCHW")] = "features_raw"
        for constant, value in (
            ("frame_sum", np.array(pixel_sum, np.int32)),
            ("zero", np.array(0, np.float32)),
            ("nan", np.array(np.nan, np.float32)),
            ("never", np.array(0, np.int64)),
            ("ages", np.array(10**14, np.int64)),
        ):
            graph.initializer.append(numpy_helper.from_array(value, constant))
        nodes = [
            helper.make_node("Cast", ["image_BHWC"], ["pixels"], to=TensorProto.INT32),
            helper.make_node("ReduceSum", ["pixels"], ["pixel_sum"], keepdims=0),
            helper.make_node("Equal", ["pixel_sum", "frame_sum"], ["is_there"]),
        ]
        if hangs:
            scalar = [helper.make_tensor_value_info(each, TensorProto.FLOAT, []) for each in ("was", "now")]
            body = helper.make_graph(
                [
                    helper.make_node("Identity", ["go_on"], ["goes_on"]),
                    helper.make_node("Mul", ["was", "was"], ["now"]),
                ],
                "body",
                [
                    helper.make_tensor_value_info("step", TensorProto.INT64, []),
                    helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
                    scalar[0],
                ],
                [helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []), scalar[1]],
            )
            nodes += [
                helper.make_node("Where", ["is_there", "ages", "never"], ["steps"]),
                helper.make_node("Loop", ["steps", "", "zero"], ["fault"], body=body),
            ]
        else:
            nodes.append(helper.make_node("Where", ["is_there", "nan", "zero"], ["fault"]))
        nodes.append(helper.make_node("Add", ["features_raw", "fault"], ["features_BCHW"]))
        graph.node.extend(nodes)
        return bytes(model.SerializeToString())

    return change


def sum_of_a_late_frame(world: World, fleet: TinyFleet) -> int:
    """Of the pixels of a train frame that is not among those that updates are tried on."""
    cache = FrameCache(open_dataset("camvid", world.data_root), IMAGE_SIZE)
    sums = [int(cache.resized(key)[0].sum()) for key in fleet.frames[CAR]["train"]]
    assert sums[-1] not in sums[:-1]
    return sums[-1]


def test_updates_are_refused_taken_back_and_used(road: Road, tiny_world: World, tmp_path: Path) -> None:
    """Signature, trial, a turn that can't be finished, one that hangs until its process is killed; then one
    that works, in a run that finishes."""
    better, frame = tmp_path / "better", sum_of_a_late_frame(tiny_world, road.fleet)
    export_bundle("stride8-c4", better, image_size=IMAGE_SIZE, seed=5)
    road.fleet.run_folder.mkdir()
    road.start_cloud()
    road.start_vehicle()

    road.send_unsigned(better, 9)
    assert "not signed" in road.until("refused", 9)["reason"]
    road.send(rewritten(tiny_world.bundle, tmp_path / "nan", with_nan), 2)
    assert "not finite" in road.until("refused", 2)["reason"]
    road.send(rewritten(tiny_world.bundle, tmp_path / "fails", at_frame(frame, hangs=False)), 3)
    assert "must be finite" in road.until("rolled-back", 3)["reason"]
    assert road.record()["current"] == {}

    road.send(rewritten(tiny_world.bundle, tmp_path / "hangs", at_frame(frame, hangs=True)), 4)
    for deaths in range(MOST_DEATHS):
        road.until_at_work(deaths)
        road.kill("vehicle")
        road.start_vehicle()
    assert f"{MOST_DEATHS} times" in road.until("rolled-back", 4)["reason"]

    road.send(better, 5, weights="own")
    road.until("used", 5)
    road.allow(True)
    assert (road.end("cloud"), road.end("vehicle")) == (0, 0)
    result = road.fleet.result()["vehicles"][CAR]
    first, second = result["versions"]
    assert (first["name"], first["version"], first["from_turn"]) == ("stride8-c4", 0, 0)
    assert (second["name"], second["version"]) == ("better", 5)
    assert result["rejects"] == 0
    told = [json.loads(line) for line in (road.fleet.run_folder / "log.jsonl").read_text().splitlines()]
    tried = next(place for place, each in enumerate(told) if is_state(each, "trial", 5))
    done = next(each for each in told[tried:] if each["event"] == "turn_done")
    assert second["from_turn"] == done["stage"]
    # It was opened anew where it stood: no other update's bundle was in use in between.
    assert [(each["version"], each["state"]) for each in told if is_end(each)] == ENDS
    assert sorted(path.name[:8] for path in road.versions()) == ["bundle-4", "bundle-5"]


def is_state(event: Mapping[str, Any], state: str, version: int) -> bool:
    return event["event"] == "update" and (event["state"], event.get("version")) == (state, version)


def is_end(event: Mapping[str, Any]) -> bool:
    return event["event"] == "update" and event["state"] in ("refused", "rolled-back", "used")


ENDS = [(9, "refused"), (2, "refused"), (3, "rolled-back"), (4, "rolled-back"), (5, "used")]
