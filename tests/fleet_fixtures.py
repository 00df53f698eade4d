"""Tiny fleets for tests of the two loops: a data set of coloured shapes, two vehicles, an in-memory bus.

A fleet here can be disturbed: its processes are killed at chosen messages and started again by a supervisor.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import torch

from cloud_server.config import CloudConfig, PatienceConfig, ZerothOrderConfig
from cloud_server.run.equipment import learns_by_surrogate, run_needs
from cloud_server.storage.checkpoint import load_checkpoint, read_tensors
from datasets.catalog import open_dataset
from datasets.labels import CAMVID
from datasets.partition import partition_frames
from edge_client.encoder.bundle import EncoderBundle, bundle_digest
from edge_client.frames import FrameCache, VehicleFrames
from edge_client.host import HostConfig, VehicleConfig
from edge_client.state import StateStore
from edge_client.state_files import FolderFiles, StateDatabase, StateFiles
from fleet.export.bundle import export_bundle
from fleet.export.head_export import export_head, head_for, write_head
from protocol.messages import Turn
from protocol.plans.first_order import FirstOrder
from protocol.plans.spsa import SpsaPlan
from protocol.session import topics
from protocol.session.memory import MemoryBus

FLEET = "tiny"
CARS = ("car-1", "car-2")
IMAGE_SIZE = (64, 48)
_DISK_SIZE = (80, 60)
_FRAMES_OF_SEQUENCE = 10
_SCORES = ("mean_local_miou", "mean_ood_miou", "classes", "frames_seen", "confusion")
_COLORS = {"sky": 200, "building": 120, "road": 60, "pavement": 90, "tree": 30, "car": 240}


@dataclass(frozen=True)
class World:
    """What fleets share and only read."""

    data_root: Path
    bundle: Path
    local_head: Path
    surrogate: Path
    """Folder of a head whose normalisation is fixed."""


def build_world(root: Path) -> World:
    """Write a CamVid-layout data set of one sequence a vehicle, an encoder bundle, and its local head."""
    random = np.random.default_rng(7)
    for folder in ("train", "trainannot"):
        (root / "data" / folder).mkdir(parents=True)
    for sequence in range(len(CARS)):
        for number in range(_FRAMES_OF_SEQUENCE):
            image_HWC, label_HW = _scene(random, tint=40 * sequence)
            name = f"seq{sequence}_{number:04d}.png"
            cv2.imwrite(str(root / "data" / "train" / name), image_HWC[:, :, ::-1])
            cv2.imwrite(str(root / "data" / "trainannot" / name), label_HW)
    bundle = export_bundle("stride8-c4", root / "bundle", image_size=IMAGE_SIZE, seed=0)
    export_head(bundle.spec, root / "head", label_space_name="camvid", width=8, depth=1, seed=0)
    head = head_for(bundle.spec, CAMVID, width=8, depth=1, seed=0, fixed=True)
    random_features = random.standard_normal((4, *bundle.spec.feature_shape)).astype(np.float32)
    head.settle(torch.from_numpy(random_features))
    write_head(head, bundle.spec, root / "surrogate", CAMVID.name)
    return World(
        data_root=root / "data",
        bundle=root / "bundle",
        local_head=root / "head",
        surrogate=root / "surrogate",
    )


def _scene(random: np.random.Generator, tint: int) -> tuple[np.ndarray, np.ndarray]:
    """image_HWC and label_HW: sky over road, with houses, trees, pavement and cars; some void."""
    width, height = _DISK_SIZE
    label_HW = np.full((height, width), CAMVID.by_name("sky").train_id, np.uint8)
    horizon = int(random.integers(height // 3, height // 2))
    label_HW[horizon:] = CAMVID.by_name("road").train_id
    label_HW[horizon:, : int(random.integers(5, 20))] = CAMVID.by_name("pavement").train_id
    for name, low, high in (("building", 15, 30), ("tree", 8, 16), ("car", 10, 20)):
        for _ in range(2):
            size, left = int(random.integers(low, high)), int(random.integers(0, width - 10))
            top = horizon - size if name != "car" else horizon + int(random.integers(0, 8))
            label_HW[max(0, top) : top + size, left : left + size] = CAMVID.by_name(name).train_id
    image_HWC = np.zeros((height, width, 3), np.float32)
    for name, brightness in _COLORS.items():
        color = (brightness, 255 - brightness, (brightness * 7 + tint) % 256)
        image_HWC[label_HW == CAMVID.by_name(name).train_id] = color
    image_HWC += random.normal(0, 12, image_HWC.shape)
    label_HW[-3:] = 11  # void in CamVid's files
    return np.clip(image_HWC, 0, 255).astype(np.uint8), label_HW


class TinyFleet:
    """Settings and folders of one run."""

    def __init__(self, world: World, folder: Path, **changes: Any) -> None:
        """`changes` are fields of `CloudConfig`."""
        self.world = world
        self.folder = folder
        self.run_folder = folder / "run"
        self.in_databases = False
        """Whether its hosts keep what vehicles learn in one file each."""
        self.allowed_learners: tuple[str, ...] = ()
        """What is not ours and what its vehicles' operators trust."""
        settings: dict[str, Any] = {
            "fleet": FLEET,
            "vehicles": CARS,
            "algorithm": "blackfed-v2",
            "rounds": 2,
            "dataset": "camvid",
            "label_space": "camvid",
            "first_order": FirstOrder(epochs=3, batch_size=4, rate=5e-3),
            "zeroth_order": ZerothOrderConfig(batches=2, batch_size=3),
            "spsa": SpsaPlan(queries=1, rate=1e-3),
            "patience": PatienceConfig(
                join_s=30, retry_s=0.2, give_up_s=30, heartbeat_s=0.5, on_failure="stop"
            ),
        }
        self.config = CloudConfig(**{**settings, **changes})
        refs = open_dataset("camvid", world.data_root).refs
        owned = partition_frames(refs, CARS, method="city", fractions=(0.6, 0.2, 0.2), seed=0)
        self.frames: dict[str, dict[str, tuple[str, ...]]] = {
            car: {
                "train": owned[car].train,
                "val": owned[car].val,
                "test": owned[car].test,
                "ood": tuple(key for other in CARS if other != car for key in owned[other].test),
            }
            for car in CARS
        }

    def host(self, *cars: str, give_up_s: float = 30.0) -> HostConfig:
        """Settings of a vehicle process with these vehicles; without any, with all."""
        surrogate = learns_by_surrogate(self.config)
        head = self.world.surrogate if surrogate else self.world.local_head
        needs = run_needs(self.config)
        return HostConfig(
            fleet=FLEET,
            dataset="camvid",
            data_root=str(self.world.data_root),
            vehicles=tuple(
                VehicleConfig(
                    id=car,
                    bundle=str(self.world.bundle),
                    state=str(self.state_folder(car)),
                    local_head=str(head) if needs.local_head else None,
                    frames=self.frames[car],
                )
                for car in cars or CARS
            ),
            encoder_mode="rebuild",
            state_database=str(self._database(*cars)) if self.in_databases else None,
            allowed_learners=self.allowed_learners,
            heartbeat_s=0.5,
            connect_timeout_s=5,
            retry_s=0.2,
            give_up_s=give_up_s,
            offline_s=give_up_s,
        )

    def state_folder(self, car: str) -> Path:
        return self.folder / "state" / car

    def _database(self, *cars: str) -> Path:
        return self.folder / "state" / f"{'-'.join(cars or CARS)}.sqlite"

    def _state_files(self, car: str) -> StateFiles:
        if self.in_databases:
            return StateDatabase(self._database(car)).of(car)
        return FolderFiles(self.state_folder(car))

    def result(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.run_folder / "result.json").read_text())
        return content

    def scores(self) -> dict[str, Any]:
        """What must come out alike of runs that end alike."""
        result = self.result()
        return {name: result[name] for name in _SCORES}

    def events(self, name: str) -> list[dict[str, Any]]:
        """The run log's events of one name."""
        lines = (json.loads(line) for line in (self.run_folder / "log.jsonl").read_text().splitlines())
        return [line for line in lines if line["event"] == name]

    def fingerprint(self) -> dict[str, str]:
        """Digests of all that was learnt: vehicles' θ and optimizers, the cloud's weights and moments, and
        what it keeps for each vehicle."""
        prints = {}
        for car in self.config.vehicles:
            files = self._state_files(car)
            for newest in files.turns()[-1:]:
                prints[f"turn {newest} of {car}"] = hashlib.sha256(files.read(newest) or b"").hexdigest()
        tensors, meta = load_checkpoint(self.run_folder / "cloud" / "checkpoints")
        for name, tensor in sorted(tensors.items()):
            prints[name] = _digest(tensor)
        for name in ("next_stage", "last_trained", "algorithm"):
            prints[name] = hashlib.sha256(json.dumps(meta[name], sort_keys=True).encode()).hexdigest()
        for kept in ("best", "own", "served", "statistics", "present"):
            for car, turn_id in meta["algorithm"].get(kept, {}).items():
                for name, tensor in sorted(self.kept(kept, car, turn_id).items()):
                    prints[f"{name}, {kept} of {car}"] = _digest(tensor)
        return prints

    def kept(self, kept: str, car: str, turn_id: int) -> dict[str, torch.Tensor]:
        """What the cloud keeps of a vehicle: its `best` weights (v2), its `own` network (individual), the
        weights that it is `served` with (split), BatchNorm's `statistics` on its frames (blackfleet), or what
        is known of its `present` frames."""
        return read_tensors(self.run_folder / "cloud" / kept / car / f"{turn_id}.safetensors")[0]

    def states(self, car: str) -> StateStore:
        """The vehicle's state folder."""
        return StateStore(self.state_folder(car), vehicle=car, bundle_digest=self.digest())

    def frames_digest(self, car: str) -> str:
        """What a vehicle of this fleet says of its frames."""
        cache = FrameCache(open_dataset("camvid", self.world.data_root), IMAGE_SIZE)
        return VehicleFrames(cache, self.frames[car]).digest("camvid")

    def digest(self) -> str:
        """What a vehicle of this fleet says of its bundle."""
        return bundle_digest(EncoderBundle.load(self.world.bundle))


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def unreliable_bus(seed: int, **shares: float) -> MemoryBus:
    """A bus that hits a share of the messages, statuses apart, with each fault: duplicate, delay, drop."""

    def chosen(share: float, fault: str) -> Callable[[str, bytes], bool]:
        draws = random.Random(f"{seed} {fault}")
        return lambda topic, payload: tag(payload) != "status" and draws.random() < share

    bus = MemoryBus()
    bus.set_faults(**{fault: chosen(share, fault) for fault, share in shares.items()})
    return bus


def interrupt(
    bus: MemoryBus, before: str, say: Callable[[Turn, bytes], tuple[topics.Channel, object]]
) -> None:
    """Let somebody else speak once, at the first car's first message with tag `before` in a turn of learning.

    `say` makes (channel, message) from the turn and the payload of that message.
    """
    client = bus.client("attacker")
    client.connect(0)
    turns: list[Turn] = []
    spoken: list[object] = []

    def listen(topic: str, payload: bytes, qos: int) -> None:
        if topics.parse(topic).vehicle != CARS[0] or spoken:
            return
        if tag(payload) == "turn":
            turns.append(msgspec.msgpack.decode(payload[1:], type=Turn))
        elif tag(payload) == before and turns[-1].turn_id > 0:
            channel, message = say(turns[-1], payload)
            spoken.append(message)
            client.publish(topics.topic(channel, FLEET, CARS[0]), b"\x00" + msgspec.msgpack.encode(message))

    bus.record(listen)


def tag(payload: bytes) -> str:
    """The type tag of a message that travels whole."""
    assert payload[0] == 0, "messages of tiny fleets fit into one part"
    content = msgspec.msgpack.decode(payload[1:])
    return str(content[0])
