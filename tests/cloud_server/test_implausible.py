"""What no honest vehicle says, though every field is well formed: refused, counted, and nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from fleet_fixtures import CARS, FLEET, TinyFleet, World, interrupt, tag
from torch import nn
from torch.nn import functional

from cloud_server.config import PatienceConfig
from cloud_server.errors import CloudError
from cloud_server.run.service import serve
from cloud_server.training.compute import ON_CPU
from cloud_server.training.inference import Inference
from edge_client.host import Host
from edge_client.turn import TurnTools
from fleet.run.in_process import run_in_process
from protocol.codec.tensor import encode
from protocol.messages import Finish, LabelOffer, OfferedLabel, Status, Turn, TurnFailed, Upload
from protocol.plans.local_loss import LocalLossPlan
from protocol.seal_files import make_seals
from protocol.session import inbox, topics
from protocol.session.memory import MemoryBus
from protocol.session.transport import Transport, Will

CAR, ILL = CARS[0], "car-2"
SETTINGS: dict[str, Any] = {
    "algorithm": "blackfleet",
    "local_loss": LocalLossPlan(warm_up_epochs=1, epochs=1),
    "rounds": 1,
}


def _run(fleet: TinyFleet, bus: MemoryBus | None = None) -> TinyFleet:
    run_in_process(fleet.config, [fleet.host()], fleet.run_folder, bus=bus)
    return fleet


@pytest.fixture(scope="module")
def undisturbed(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> TinyFleet:
    return _run(TinyFleet(tiny_world, tmp_path_factory.mktemp("undisturbed"), **SETTINGS))


def _header(turn: Turn) -> dict[str, Any]:
    return {"vehicle": CAR, "grant": turn.grant, "turn_id": turn.turn_id, "step": 10**6}


def _huge_features(turn: Turn) -> Upload:
    features = encode(np.full((1, 4, 6, 8), 3e37, np.float32), 32)
    return Upload(**_header(turn), split="train", frames=(0,), features=features)


def _huge_label(turn: Turn) -> LabelOffer:
    test = 8  # of 6 frames to train, 2 to validate and 3 to test
    label = OfferedLabel(index=test, key="a", digest=b"0" * 16, height=16384, width=16384)
    return LabelOffer(**_header(turn), labels=(label,))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_huge_features, "features hold numbers up to 3e+37, 1e+06 is the most"),
        (_huge_label, "label of frame 8 is 16384x16384 pixels, of which a label may have 16777216"),
    ],
)
def test_message_that_would_cost_or_spoil_too_much_changes_nothing(
    undisturbed: TinyFleet, tmp_path: Path, make: Callable[[Turn], object], reason: str
) -> None:
    bus = MemoryBus()
    interrupt(bus, "upload", lambda turn, payload: (topics.UP, make(turn)))
    fleet = _run(TinyFleet(undisturbed.world, tmp_path, **SETTINGS), bus)
    [reject] = fleet.events("reject")
    assert reject["reason"] == reason
    assert fleet.fingerprint() == undisturbed.fingerprint()


def test_strangers_who_hear_all_and_say_what_they_like_change_nothing_of_a_sealed_run(
    undisturbed: TinyFleet, tmp_path: Path
) -> None:
    """Forged words, and old ones of cloud and vehicles said again."""
    bus, stop, seals = MemoryBus(), threading.Event(), tmp_path / "seals"
    fleet = TinyFleet(undisturbed.world, tmp_path, **SETTINGS)
    make_seals(seals, FLEET, CARS)
    stranger = bus.client("stranger")
    stranger.connect(0)
    again: list[tuple[str, bytes]] = []
    is_ours = threading.local()

    def listen(topic: str, payload: bytes, qos: int) -> None:
        address = topics.parse(topic)
        if getattr(is_ours, "now", False) or payload[:2] != b"\x00\xc1":
            return
        kind = tag(payload[:1] + payload[19:])
        if kind in ("turn", "hello", "welcome"):
            again.append((topic, payload))
        if kind not in ("want", "upload", "done", "ack"):
            return
        is_ours.now = True
        car = address.vehicle
        forged = {
            topics.DOWN: Finish(vehicle=car, reason="forged"),
            topics.UP: TurnFailed(**_header_of(payload), reason="forged"),
        }
        for channel, message in forged.items():
            stranger.publish(topics.topic(channel, FLEET, car), b"\x00" + msgspec.msgpack.encode(message))
        lie = Status(vehicle=topics.CLOUD_ID, session="5" * 16, online=True, beat=1)
        stranger.publish(
            topics.topic(topics.STATUS, FLEET, topics.CLOUD_ID), b"\x00" + msgspec.msgpack.encode(lie)
        )
        for old in again:
            stranger.publish(*old)
        is_ours.now = False

    def connect(client_id: str, will: Will, on_connect: Callable[[], None]) -> Transport:
        return bus.client(client_id, will=will, on_connect=on_connect)

    bus.record(listen)
    host = Host(msgspec.structs.replace(fleet.host(), seals=str(seals)), connect, stop)
    thread = threading.Thread(target=host.run)
    thread.start()
    serve(fleet.config, connect, run_folder=fleet.run_folder, resume=False, stop=stop, seals=seals)
    thread.join()
    assert len(again) > 4 and sum(car["rejects"] for car in fleet.result()["vehicles"].values()) > 4
    assert fleet.fingerprint() == undisturbed.fingerprint()
    assert fleet.events("restarted") == []


def _header_of(payload: bytes) -> dict[str, Any]:
    _, vehicle, grant, turn_id, step, *_ = msgspec.msgpack.decode(payload[19:])
    return {"vehicle": vehicle, "grant": grant, "turn_id": turn_id, "step": step + 1}


def test_statuses_of_strangers_are_counted_and_logged_ever_more_rarely(
    undisturbed: TinyFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "MOST_OFFENCES", 10_000)  # or they are not heard long before
    bus = MemoryBus()
    client = bus.client("attacker")
    client.connect(0)
    said: list[int] = []

    def listen(topic: str, payload: bytes, qos: int) -> None:
        if topics.parse(topic).vehicle == CAR and tag(payload) == "upload" and not said:
            said.append(1)
            for beat in range(300):
                status = Status(vehicle="nobody", session="0" * 16, online=True, beat=beat)
                client.publish(
                    topics.topic(topics.STATUS, FLEET, "nobody"), b"\x00" + msgspec.msgpack.encode(status)
                )

    bus.record(listen)
    fleet = _run(TinyFleet(undisturbed.world, tmp_path, **SETTINGS), bus)
    assert fleet.result()["strangers"] == 300
    assert len(fleet.events("reject")) == 102  # the first hundred, then 128 and 256
    assert fleet.fingerprint() == undisturbed.fingerprint()


def test_vehicle_that_comes_and_goes_without_end_does_not_fill_the_log(
    undisturbed: TinyFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "MOST_STATUSES", 10_000)  # or it is not heard long before
    bus = MemoryBus()
    client = bus.client("attacker")
    client.connect(0)
    sessions: list[str] = []
    said: list[int] = []

    def listen(topic: str, payload: bytes, qos: int) -> None:
        if topics.parse(topic).vehicle != CAR:
            return
        if tag(payload) == "status":
            sessions.append(msgspec.msgpack.decode(payload[1:], type=Status).session)
        elif tag(payload) == "upload" and not said:
            said.append(1)
            for beat in range(3000):
                status = Status(vehicle=CAR, session=sessions[-1], online=beat % 2 == 1, beat=beat)
                client.publish(
                    topics.topic(topics.STATUS, FLEET, CAR), b"\x00" + msgspec.msgpack.encode(status)
                )

    bus.record(listen)
    fleet = _run(TinyFleet(undisturbed.world, tmp_path, **SETTINGS), bus)
    left = [event for event in fleet.events("left") if event["vehicle"] == CAR]
    assert len(left) == 1001  # the first thousand, then the 1,024th
    assert len(fleet.events("back")) in (1000, 1001)  # as often as it was told to have left
    assert fleet.fingerprint() == undisturbed.fingerprint()


def test_requests_without_end_are_refused_within_a_turn(tiny_world: World, tmp_path: Path) -> None:
    """Each is answered, and its answer kept in case it is lost."""
    bus = MemoryBus()
    client = bus.client("attacker")
    client.connect(0)
    turns: list[Turn] = []

    def listen(topic: str, payload: bytes, qos: int) -> None:
        if topics.parse(topic).vehicle != CAR or len(turns) > 100:
            return
        if tag(payload) == "turn":
            turns.append(msgspec.msgpack.decode(payload[1:], type=Turn))
        elif tag(payload) == "offer" and turns[-1].turn_id > 0:
            turns.extend(turns[-1:] * 100)
            for step in range(6000):
                offer = LabelOffer(**{**_header(turns[-1]), "step": 1000 + step}, labels=())
                client.publish(topics.topic(topics.UP, FLEET, CAR), b"\x00" + msgspec.msgpack.encode(offer))

    bus.record(listen)
    patience = PatienceConfig(join_s=30, retry_s=0.2, give_up_s=30, heartbeat_s=0.5, on_failure="stop")
    fleet = TinyFleet(tiny_world, tmp_path, **SETTINGS, patience=patience)
    said = r"vehicle 'car-1' can't go on: .*turn 1 has had \d+ requests; no turn needs more"
    with pytest.raises(CloudError, match=said):
        _run(fleet, bus)


def test_vehicle_that_lives_and_never_comes_to_an_end_is_left_out(
    tiny_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience = PatienceConfig(
        join_s=30, retry_s=0.2, give_up_s=30, heartbeat_s=0.2, turn_s=1.0, on_failure="continue"
    )
    sound, stuck = TurnTools.encode, []

    def encode(tools: TurnTools, *arguments: Any) -> Any:
        if not stuck and tools.turn.vehicle == ILL and tools.turn.turn_id > 0:
            stuck.append(1)
            time.sleep(3)
        return sound(tools, *arguments)

    monkeypatch.setattr(TurnTools, "encode", encode)
    fleet = _run(TinyFleet(tiny_world, tmp_path, **SETTINGS, patience=patience))
    assert fleet.result()["failed"][ILL].startswith("has not finished turn 1 in ")


@pytest.mark.parametrize("size_hw", [(48, 64), (37, 55), (6, 8)])
@pytest.mark.parametrize("ties", [False, True])
def test_predictions_class_by_class_are_those_of_all_logits_at_once(
    size_hw: tuple[int, int], ties: bool
) -> None:
    features_BCHW = torch.randn(3, 7, 6, 8, generator=torch.Generator().manual_seed(0))
    features_BCHW = features_BCHW.round() if ties else features_BCHW
    inference = Inference(nn.Identity(), loss="cross-entropy", threads=1, compute=ON_CPU)
    enlarged = functional.interpolate(features_BCHW, size=size_hw, mode="bilinear", align_corners=False)
    assert np.array_equal(inference.predict(features_BCHW.numpy(), size_hw), enlarged.argmax(1).numpy())
