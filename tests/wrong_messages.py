"""Everything wrong that a vehicle could say, each with what the cloud must answer."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from fleet_fixtures import CARS

from protocol.codec.deflate import deflate
from protocol.codec.labels import content_hash, encode_label
from protocol.codec.tensor import EncodedTensor, encode
from protocol.messages import (
    PROTOCOL_VERSION,
    Hello,
    LabelOffer,
    Labels,
    OfferedLabel,
    Query,
    Status,
    Turn,
    TurnDone,
    Upload,
)
from protocol.session.link import MAX_MESSAGE_BYTES

CAR, OTHER = CARS
_C, _H, _W = 4, 6, 8
_TRAIN, _VAL = tuple(range(6)), 6


SOUND_HELLO = Hello(
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


def packed(message: object) -> bytes:
    return b"\x00" + msgspec.msgpack.encode(message)


def features_of(count: int, **changes: Any) -> EncodedTensor:
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
    "unknown bits": (features_of(2, bits=5), "bits must be one of"),
    "bits of too few channels": (features_of(2, bits=bytes([8, 8])), "bits must be one number or 4, got 2"),
    "unknown bits of a channel": (
        features_of(2, bits=bytes([8, 8, 5, 8])),
        "bits of a channel must be one of",
    ),
    "float32 of a channel": (features_of(2, bits=bytes([8, 8, 32, 8])), "bits of a channel must be one of"),
    "fewer bits than the data has": (features_of(2, bits=bytes([8, 8, 2, 8])), "tensor data is too long"),
    "other dtype": (features_of(2, bits=32, scale=b"", zero=b""), "tensor data is t"),
    "other shape": (features_of(2, shape=(2, _C, _W, _H)), "shape must be 2x4x6x8, got 2x4x8x6"),
    "other channels": (features_of(2, shape=(2, 2 * _C, _H, _W)), "shape must be"),
    "more frames than named": (features_of(3), "shape must be 2x4x6x8, got 3x4x6x8"),
    "huge shape": (features_of(2, shape=(2, 2**20, 2**10, 2**10)), "shape must be"),
    "no shape": (features_of(2, shape=()), "shape must be"),
    "NaN in scale": (features_of(2, scale=_with(np.nan)), "scale holds NaN or infinity"),
    "infinity in scale": (features_of(2, scale=_with(np.inf)), "scale holds NaN or infinity"),
    "negative scale": (features_of(2, scale=_with(-1)), "scale must not be negative"),
    "short scale": (features_of(2, scale=_FLOATS.tobytes()[:-1]), "scale must have 16 bytes, got 15"),
    "NaN in zero point": (features_of(2, zero=_with(np.nan)), "zero point holds NaN or infinity"),
    "truncated data": (features_of(2, data=features_of(2).data[:-9]), "tensor data is t"),
    "data with a tail": (features_of(2, data=features_of(2).data + b"!"), "after its end"),
    "random data": (features_of(2, data=bytes(range(256))), "tensor data"),
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


def wrong_requests(turn: Turn) -> list[Wrong]:
    """Requests inside a turn that is under way, at steps that the vehicle itself never comes to."""
    steps = iter(range(10**6, 10**7))
    wrong = []

    def add(name: str, reason: str, make: Callable[..., object], **fields: Any) -> None:
        header = {"vehicle": CAR, "grant": turn.grant, "turn_id": turn.turn_id, "step": next(steps)}
        wrong.append(Wrong(name, packed(make(**{**header, **fields})), reason))

    for name, (features, reason) in _BAD_FEATURES.items():
        add(f"query with {name}", reason, Query, frames=(0, 1), features=features)
        add(f"upload with {name}", reason, Upload, split="train", frames=(0, 1), features=features)
    good = features_of(2)
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


def wrong_bytes(turn: Turn) -> list[Wrong]:
    """Payloads that are no request of this vehicle at all."""
    header = {"vehicle": CAR, "grant": turn.grant, "turn_id": turn.turn_id, "step": 10**7}
    query = Query(**header, frames=(0, 1), features=features_of(2))  # type: ignore[arg-type]
    whole = packed(query)
    fields = msgspec.msgpack.decode(whole[1:])
    elsewhere = packed(msgspec.structs.replace(query, vehicle=OTHER))
    status = packed(Status(vehicle=CAR, session="0" * 16, online=False, beat=0))
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
        Wrong("unknown tag", packed(["gradient", *fields[1:]]), "gradient"),
        Wrong("one field too many", packed([*fields, 1]), "length"),
        Wrong("one field too few", packed(fields[:-2]), "length"),
        Wrong("negative step", packed(["query", CAR, turn.grant, 1, -1, *fields[5:]]), ">= 0"),
        Wrong("number for a name", packed(["query", 7, *fields[2:]]), "Expected `str`"),
        Wrong("grant of other characters", packed(["query", CAR, "../../../..", *fields[3:]]), "regex"),
        Wrong("vehicle id of another", elsewhere, f"message of vehicle '{OTHER}' on the topic of '{CAR}'"),
    ]


def wrong_hellos(hello: Hello) -> list[Wrong]:
    """Introductions in this vehicle's name that do not fit the run."""
    changes: list[tuple[str, dict[str, Any], str]] = [
        ("another protocol version", {"protocol": PROTOCOL_VERSION + 1}, "this cloud speaks"),
        ("another label space", {"label_space": "cityscapes"}, "this run is about 'camvid'"),
        ("another feature shape", {"feature_shape": (9, 9, 9)}, "features of shape 9x9x9"),
        ("another image size", {"image_size": (640, 480)}, "images of 640x480 pixels"),
        ("no frames", {"frames": {}}, "no train frames"),
        (
            "other frames",
            {"frames": {"train": 1, "val": 1, "test": 1, "ood": 0}, "labels": {}},
            "other frames",
        ),
        ("another bundle", {"bundle_digest": "0"}, "came back with the bundle"),
    ]
    return [
        Wrong(name, packed(msgspec.structs.replace(hello, session="f" * 16, **change)), reason)
        for name, change, reason in changes
    ]
