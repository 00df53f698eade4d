"""A hostile or broken peer on the bus: all that it says is rejected, counted, logged, and changes nothing."""

from __future__ import annotations

import logging
import struct
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fleet_fixtures import CARS, FLEET, Supervisor, TinyFleet, tag
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.conversation import Conversation, Patience
from edge_client.errors import VehicleError
from protocol.codec.deflate import deflate
from protocol.codec.labels import content_hash, encode_label
from protocol.codec.tensor import EncodedTensor, encode
from protocol.messages import (
    PROTOCOL_VERSION,
    Feedback,
    Hello,
    LabelOffer,
    Labels,
    OfferedLabel,
    Query,
    Reject,
    Status,
    Turn,
    TurnDone,
    Up,
    Upload,
)
from protocol.session import topics
from protocol.session.link import MAX_MESSAGE_BYTES, CloudLink, Malformed, Received, VehicleLink
from protocol.session.memory import MemoryBus, MemoryTransport

CAR, OTHER = CARS
_C, _H, _W = 4, 6, 8
_TRAIN, _VAL = tuple(range(6)), 6


_SOUND_HELLO = Hello(
    vehicle=CAR,
    session="ab" * 8,
    protocol=PROTOCOL_VERSION,
    encoder="stride8-c4",
    bundle_digest="0123",
    feature_shape=(_C, _H, _W),
    image_size=(64, 48),
    label_space="camvid",
    frames={"train": 6, "val": 2, "test": 2},
    frames_digest="00",
)


def _packed(message: object) -> bytes:
    return b"\x00" + msgspec.msgpack.encode(message)


def _features(count: int, **changes: Any) -> EncodedTensor:
    """Well-formed features of `count` frames, but for `changes`."""
    features_BCHW = np.random.default_rng(1).normal(size=(count, _C, _H, _W)).astype(np.float32)
    return msgspec.structs.replace(encode(features_BCHW, 8), **changes)


_FLOATS = np.ones(_C, "<f4")


def _with(value: float) -> bytes:
    floats = _FLOATS.copy()
    floats[1] = value
    return floats.tobytes()


def _float32(value: float) -> EncodedTensor:
    shape = (2, _C, _H, _W)
    data = deflate(np.full(shape, value, "<f4").tobytes(), zlib.Z_HUFFMAN_ONLY)
    return EncodedTensor(32, shape, b"", b"", data)


_BAD_FEATURES: dict[str, tuple[EncodedTensor, str]] = {
    "unknown bits": (_features(2, bits=5), "bits must be one of"),
    "bits of too few channels": (_features(2, bits=bytes([8, 8])), "bits must be one number or 4, got 2"),
    "unknown bits of a channel": (_features(2, bits=bytes([8, 8, 5, 8])), "bits of a channel must be one of"),
    "float32 of a channel": (_features(2, bits=bytes([8, 8, 32, 8])), "bits of a channel must be one of"),
    "fewer bits than the data has": (_features(2, bits=bytes([8, 8, 2, 8])), "tensor data is too long"),
    "other dtype": (_features(2, bits=32, scale=b"", zero=b""), "tensor data is t"),
    "other shape": (_features(2, shape=(2, _C, _W, _H)), "shape must be 2x4x6x8, got 2x4x8x6"),
    "other channels": (_features(2, shape=(2, 2 * _C, _H, _W)), "shape must be"),
    "more frames than named": (_features(3), "shape must be 2x4x6x8, got 3x4x6x8"),
    "huge shape": (_features(2, shape=(2, 2**20, 2**10, 2**10)), "shape must be"),
    "no shape": (_features(2, shape=()), "shape must be"),
    "NaN in scale": (_features(2, scale=_with(np.nan)), "scale holds NaN or infinity"),
    "infinity in scale": (_features(2, scale=_with(np.inf)), "scale holds NaN or infinity"),
    "negative scale": (_features(2, scale=_with(-1)), "scale must not be negative"),
    "short scale": (_features(2, scale=_FLOATS.tobytes()[:-1]), "scale must have 16 bytes, got 15"),
    "NaN in zero point": (_features(2, zero=_with(np.nan)), "zero point holds NaN or infinity"),
    "truncated data": (_features(2, data=_features(2).data[:-9]), "tensor data is t"),
    "data with a tail": (_features(2, data=_features(2).data + b"!"), "after its end"),
    "random data": (_features(2, data=bytes(range(256))), "tensor data"),
    "NaN in float32": (_float32(np.nan), "tensor holds NaN or infinity"),
    "infinity in float32": (_float32(-np.inf), "tensor holds NaN or infinity"),
}


def _label(index: int, label_HW: np.ndarray, **changes: Any) -> tuple[OfferedLabel, bytes]:
    height, width = label_HW.shape
    offered = OfferedLabel(
        index=index, key=f"frame-{index}", digest=content_hash(label_HW), height=height, width=width
    )
    return msgspec.structs.replace(offered, **changes), encode_label(label_HW)


@dataclass(frozen=True)
class Wrong:
    """A payload for the vehicle's uplink, and what the cloud says of it."""

    name: str
    payload: bytes
    reason: str


def _wrong_requests(turn: Turn) -> list[Wrong]:
    """Requests inside a turn that is under way, at steps that the vehicle itself never comes to."""
    steps = iter(range(10**6, 10**7))
    wrong = []

    def add(name: str, reason: str, make: Callable[..., object], **fields: Any) -> None:
        header = {"vehicle": CAR, "grant": turn.grant, "turn_id": turn.turn_id, "step": next(steps)}
        wrong.append(Wrong(name, _packed(make(**{**header, **fields})), reason))

    for name, (features, reason) in _BAD_FEATURES.items():
        add(f"query with {name}", reason, Query, frames=(0, 1), features=features)
        add(f"upload with {name}", reason, Upload, split="train", frames=(0, 1), features=features)
    good = _features(2)
    frames = "is no train frame of 'car-1'"
    add("query of a frame out of range", frames, Query, frames=(0, 99), features=good)
    add("query of a val frame", frames, Query, frames=(0, _VAL), features=good)
    add("query of no frame", "no frames are named", Query, frames=(), features=good)
    add("query of a frame twice", "a frame is named twice", Query, frames=(1, 1), features=good)
    add("upload of a frame out of range", frames, Upload, split="train", frames=(0, 99), features=good)
    add(
        "upload of a frame twice",
        "a frame is named twice",
        Upload,
        split="train",
        frames=(1, 1),
        features=good,
    )
    add("upload of another split", "not asked for", Upload, split="test", frames=(8, 9), features=good)
    add("stale grant", "stale turn", Query, grant="0" * 16, frames=(0, 1), features=good)
    add("old turn", "stale turn", Query, turn_id=0, frames=(0, 1), features=good)
    add("end before the uploads", "with 0 of 6 train frames uploaded", TurnDone, loss=1.0)
    label_HW = np.zeros((48, 64), np.uint8)
    unknown_HW = np.full((48, 64), 12, np.uint8)
    labels = {
        "label of a frame out of range": (_label(99, label_HW), "declared"),
        "label of another size": (_label(0, label_HW[:, :32]), "label of train frame 0 is 32x48 pixels"),
        "label with an unknown id": (
            _label(0, unknown_HW),
            "label ids must be below 11, or 255 for void, got 12",
        ),
        "label of another content": (_label(0, label_HW, digest=b"12345678"), "not what its digest"),
        "label of another height": (_label(8, label_HW, height=60), "label data is t"),
        "label of a strange name": (_label(0, label_HW, key="../../x"), "frame key must be"),
    }
    for name, ((offered, coded), reason) in labels.items():
        add(name, reason, Labels, labels=((offered, coded),))
    truncated = (_label(0, label_HW, digest=b"87654321")[0], encode_label(label_HW)[:-1])
    add("truncated label", "label data is t", Labels, labels=(truncated,))
    add("offer out of range", "declared", LabelOffer, labels=(_label(99, label_HW)[0],))
    add("offer of another size", "is 32x48 pixels", LabelOffer, labels=(_label(0, label_HW[:, :32])[0],))
    return wrong


def _wrong_bytes(turn: Turn) -> list[Wrong]:
    """Payloads that are no request of this vehicle at all."""
    header = {"vehicle": CAR, "grant": turn.grant, "turn_id": turn.turn_id, "step": 10**7}
    query = Query(**header, frames=(0, 1), features=_features(2))  # type: ignore[arg-type]
    whole = _packed(query)
    fields = msgspec.msgpack.decode(whole[1:])
    elsewhere = _packed(msgspec.structs.replace(query, vehicle=OTHER))
    status = _packed(Status(vehicle=CAR, session="0" * 16, online=False, beat=0))
    return [
        Wrong("nothing", b"", "are no message"),
        Wrong("random bytes", np.random.default_rng(0).bytes(500), "are no message"),
        Wrong("random bytes framed", b"\x00" + np.random.default_rng(0).bytes(500), ""),
        Wrong("truncated message", whole[:-20], "truncated"),
        Wrong("message with a tail", whole + b"\x01", "trailing"),
        Wrong("half a part", b"\x01\x00\x00", "are no message"),
        Wrong("part beyond the last", struct.pack(">BQIHH", 1, 7, 7, 2, 2) + b"x", "does not exist"),
        Wrong("part with a wrong checksum", struct.pack(">BQIHH", 1, 7, 7, 1, 0) + b"x", "checksum"),
        Wrong("oversized message", bytes(MAX_MESSAGE_BYTES + 2), "allowed"),
        Wrong("message of another channel", status, ""),
        Wrong("unknown tag", _packed(["gradient", *fields[1:]]), "gradient"),
        Wrong("one field too many", _packed([*fields, 1]), "length"),
        Wrong("one field too few", _packed(fields[:-1]), "length"),
        Wrong("negative step", _packed(["query", CAR, turn.grant, 1, -1, *fields[5:]]), ">= 0"),
        Wrong("number for a name", _packed(["query", 7, *fields[2:]]), "Expected `str`"),
        Wrong("grant of other characters", _packed(["query", CAR, "../../../..", *fields[3:]]), "regex"),
        Wrong("vehicle id of another", elsewhere, f"message of vehicle '{OTHER}' on the topic of '{CAR}'"),
    ]


def _wrong_hellos(hello: Hello) -> list[Wrong]:
    """Introductions in this vehicle's name that do not fit the run."""
    changes: list[tuple[str, dict[str, Any], str]] = [
        ("another protocol version", {"protocol": PROTOCOL_VERSION + 1}, "this cloud speaks"),
        ("another label space", {"label_space": "cityscapes"}, "this run is about 'camvid'"),
        ("another feature shape", {"feature_shape": (9, 9, 9)}, "features of shape 9x9x9"),
        ("another image size", {"image_size": (640, 480)}, "images of 640x480 pixels"),
        ("no frames", {"frames": {}}, "no train frames"),
        ("other frames", {"frames": {"train": 1, "val": 1, "test": 1, "ood": 0}}, "other frames"),
        ("another bundle", {"bundle_digest": "0"}, "came back with the bundle"),
    ]
    return [
        Wrong(name, _packed(msgspec.structs.replace(hello, session="f" * 16, **change)), reason)
        for name, change, reason in changes
    ]


class Attacker:
    """Speaks once in a vehicle's name, in the middle of a turn of its."""

    def __init__(self, bus: MemoryBus, *, before: str, say: Callable[[Turn, Hello], list[Wrong]]) -> None:
        """`before`: the tag of the message of CAR's first training turn at which it interrupts."""
        self.wrong: list[Wrong] = []
        self.client: MemoryTransport = bus.client("attacker")
        self.client.connect(0)
        self._before = before
        self._say = say
        self._hello: Hello | None = None
        self._turn: Turn | None = None
        self._spoken = False
        bus.record(self._listen)

    def _listen(self, topic: str, payload: bytes, qos: int) -> None:
        if self._spoken or topics.parse(topic).vehicle != CAR:
            return
        if tag(payload) == "hello":
            self._hello = msgspec.msgpack.decode(payload[1:], type=Hello)
        elif tag(payload) == "turn":
            self._turn = msgspec.msgpack.decode(payload[1:], type=Turn)
        elif tag(payload) == self._before and self._turn and self._turn.turn_id > 0:
            assert self._hello is not None
            self._spoken = True
            self.wrong = self._say(self._turn, self._hello)
            for wrong in self.wrong:
                self.client.publish(topics.topic(topics.UP, FLEET, CAR), wrong.payload)


def _everything_wrong(turn: Turn, hello: Hello) -> list[Wrong]:
    return [*_wrong_requests(turn), *_wrong_bytes(turn), *_wrong_hellos(hello)]


def _wrong_at_the_end(turn: Turn, hello: Hello) -> list[Wrong]:
    """Requests of a turn whose uploads are complete."""
    header = {"vehicle": CAR, "grant": turn.grant, "turn_id": turn.turn_id}
    again = Upload(**header, step=10**6, split="train", frames=(4, 5), features=_features(2))  # type: ignore[arg-type]
    done = TurnDone(**header, step=10**6, loss=float("nan"))  # type: ignore[arg-type]
    return [
        Wrong("frames that are here already", _packed(again), "train frame 4 is uploaded twice"),
        Wrong("loss that is no number", _packed(done), "loss must be finite, got nan"),
    ]


@pytest.mark.parametrize(
    ("before", "say", "at_least"), [("query", _everything_wrong, 60), ("done", _wrong_at_the_end, 2)]
)
def test_wrong_messages_are_rejected_one_by_one_and_change_nothing(
    before: str,
    say: Callable[[Turn, Hello], list[Wrong]],
    at_least: int,
    undisturbed: TinyFleet,
    tmp_path: Path,
) -> None:
    bus = MemoryBus()
    attacker = Attacker(bus, before=before, say=say)
    fleet = TinyFleet(undisturbed.world, tmp_path)
    Supervisor(fleet, bus).run()
    rejects = fleet.events("reject")
    assert len(attacker.wrong) >= at_least
    for wrong, reject in zip(attacker.wrong, rejects, strict=True):
        assert wrong.reason in reject["reason"], f"{wrong.name}: {reject['reason']}"
        assert "\n" not in reject["reason"]
    assert [reject["count"] for reject in rejects] == list(range(1, len(rejects) + 1))
    result = fleet.result()
    assert result["vehicles"][CAR]["rejects"] == len(attacker.wrong)
    assert result["vehicles"][OTHER]["rejects"] == 0
    assert fleet.fingerprint() == undisturbed.fingerprint()


def _hello(fleet: TinyFleet, vehicle: str) -> Hello:
    """What a sound vehicle of this fleet says of itself."""
    return msgspec.structs.replace(
        _SOUND_HELLO,
        vehicle=vehicle,
        bundle_digest=fleet.digest(),
        frames={split: len(keys) for split, keys in fleet.frames[CAR].items()},
        frames_digest=fleet.frames_digest(CAR),
    )


def test_strangers_and_forged_statuses_change_nothing(undisturbed: TinyFleet, tmp_path: Path) -> None:
    bus = MemoryBus()
    fleet = TinyFleet(undisturbed.world, tmp_path)
    heard: list[Reject] = []
    intruder = VehicleLink(bus.client("intruder"), FLEET, "intruder")
    intruder.open(1)
    spoken = threading.Event()

    def speak(topic: str, payload: bytes, qos: int) -> None:
        if spoken.is_set() or topic != topics.topic(topics.UP, FLEET, CAR) or tag(payload) != "query":
            return
        spoken.set()
        intruder.send(_hello(fleet, "intruder"))
        intruder.send(TurnDone(vehicle="intruder", grant="0" * 16, turn_id=1, step=0, loss=None))
        forged = Status(vehicle=CAR, session="0" * 16, online=False, beat=99)
        intruder.transport.publish(topics.topic(topics.STATUS, FLEET, CAR), _packed(forged))
        intruder.transport.publish(topics.topic(topics.STATUS, FLEET, "nobody"), b"\x00\xff")
        intruder.transport.publish(topics.topic(topics.UP, FLEET, "nobody"), b"rubbish")
        intruder.transport.publish(f"{topics.PREFIX}/{FLEET}/no body/up", b"\x00")

    bus.record(speak)
    Supervisor(fleet, bus).run()
    while (received := intruder.receive(0)) is not None:
        assert isinstance(received, Received)
        if isinstance(received.message, Reject):
            heard.append(received.message)
    assert [reject.final for reject in heard] == [True, False]
    assert "vehicle 'intruder' is not in this fleet (2 vehicles: car-1, car-2)" in heard[0].reason
    assert fleet.result()["strangers"] == 5
    assert fleet.fingerprint() == undisturbed.fingerprint()


def test_wrong_messages_to_a_vehicle_change_nothing(
    undisturbed: TinyFleet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bus = MemoryBus()
    fleet = TinyFleet(undisturbed.world, tmp_path)
    attacker = bus.client("attacker")
    attacker.connect(0)
    turns: list[Turn] = []
    down = topics.topic(topics.DOWN, FLEET, CAR)

    def speak(topic: str, payload: bytes, qos: int) -> None:
        if topic != down or len(turns) > 2 or tag(payload) not in ("turn", "feedback"):
            return
        if tag(payload) == "turn":
            turns.append(msgspec.msgpack.decode(payload[1:], type=Turn))
        elif len(turns) == 2:
            header = {"vehicle": CAR, "turn_id": turns[1].turn_id}
            ours, other = turns[1].grant, "0" * 16
            turns.append(turns[1])  # spoken
            refusal = Reject(vehicle=CAR, grant=other, step=0, reason="go away", final=True)
            for wrong in (
                b"",
                np.random.default_rng(2).bytes(300),
                payload[:-3],
                _packed(Feedback(**header, grant=other, step=0, losses=(0.0,))),  # type: ignore[arg-type]
                _packed(Feedback(**header, grant=ours, step=10**6, losses=(0.0,))),  # type: ignore[arg-type]
                _packed(Feedback(vehicle=OTHER, turn_id=1, grant=ours, step=1, losses=(0.0,))),
                _packed(refusal),
                _packed(msgspec.structs.replace(refusal, grant=ours, step=10**6)),
                _packed(turns[0]),  # an old turn
                _packed(msgspec.structs.replace(turns[1], grant=other)),  # of no cloud
            ):
                attacker.publish(down, wrong)

    bus.record(speak)
    with caplog.at_level(logging.WARNING):
        Supervisor(fleet, bus).run()
    assert len(turns) > 2
    ignored = [record.message for record in caplog.records if "ignored a malformed" in record.message]
    assert len(ignored) == 4 and not any("\n" in line for line in ignored)
    assert fleet.fingerprint() == undisturbed.fingerprint()


class BrokenVehicle:
    """Ends its first turn without having done anything."""

    def __init__(self, fleet: TinyFleet, bus: MemoryBus) -> None:
        self._link = VehicleLink(bus.client(f"{FLEET}-{CAR}"), FLEET, CAR)
        self._patience = Patience(retry_s=0.1, give_up_s=5)
        self._fleet = fleet
        self._bus = bus

    def run(self) -> str:
        """Returns what it is told."""
        self._link.open(1)
        hello = _hello(self._fleet, CAR)
        talk = Conversation(
            self._link,
            self._patience,
            session=hello.session,
            stop=threading.Event(),
            on_new_cloud=partial(self._link.send, hello),
            alive=lambda: None,
        )
        try:
            while True:
                turn = talk.receive(0.1)
                if isinstance(turn, Turn):
                    done = TurnDone(vehicle=CAR, grant=turn.grant, turn_id=turn.turn_id, step=0, loss=None)
                    talk.ask(turn, [done])
        except VehicleError as error:
            return str(error)
        finally:
            self._link.close()


def test_vehicle_that_breaks_the_protocol_ends_alone_and_may_come_back(
    undisturbed: TinyFleet, tmp_path: Path
) -> None:
    bus = MemoryBus()
    fleet = TinyFleet(undisturbed.world, tmp_path)
    told: list[str] = []
    supervisor = Supervisor(fleet, bus)
    supervisor.before_vehicle(CAR, lambda: told.append(BrokenVehicle(fleet, bus).run()))
    supervisor.run()
    assert told == ["the cloud rejects this vehicle's message: turn 0 ended with 0 of 2 test frames uploaded"]
    assert fleet.result()["vehicles"][CAR]["rejects"] == 1
    assert fleet.fingerprint() == undisturbed.fingerprint()


def _cloud_link() -> tuple[CloudLink, MemoryTransport]:
    bus = MemoryBus()
    link = CloudLink(bus.client("cloud"), FLEET)
    link.open(1)
    peer = bus.client("peer")
    peer.connect(1)
    return link, peer


_SOUND: list[Up] = [
    _SOUND_HELLO,
    Query(vehicle=CAR, grant="0" * 16, turn_id=1, step=3, frames=(0, 1), features=_features(2)),
    TurnDone(vehicle=CAR, grant="0" * 16, turn_id=1, step=9, loss=0.5),
]


@settings(max_examples=300, deadline=None)
@given(payload=st.binary(max_size=400))
def test_random_bytes_are_malformed(payload: bytes) -> None:
    link, peer = _cloud_link()
    peer.publish(topics.topic(topics.UP, FLEET, CAR), payload)
    outcome = link.receive(0)
    assert outcome is None or isinstance(outcome, Malformed)
    if isinstance(outcome, Malformed):
        assert outcome.vehicle == CAR and outcome.packet_bytes > len(payload)
        assert "\n" not in outcome.reason


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_messages_are_malformed_or_typed(data: st.DataObject) -> None:
    payload = bytearray(_packed(data.draw(st.sampled_from(_SOUND))))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    link, peer = _cloud_link()
    peer.publish(topics.topic(topics.UP, FLEET, CAR), bytes(payload))
    outcome = link.receive(0)
    if isinstance(outcome, Received):
        assert outcome.message.vehicle == CAR
        assert isinstance(outcome.message, Hello | Query | TurnDone)
