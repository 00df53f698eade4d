"""What is fuzzed: each decoder of what crosses the network, with what it may answer to nonsense."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from protocol.codec.labels import decode_label
from protocol.codec.tensor import EncodedTensor, decode
from protocol.codec.weights import WeightTensor, unpack
from protocol.errors import WireError
from protocol.session import parts, topics
from protocol.session.clock import REAL_CLOCK
from protocol.session.intake import Intake, Malformed
from protocol.session.seal import CloudSeal
from protocol.session.transport import Delivery

REFUSALS = (WireError, msgspec.DecodeError, UnicodeDecodeError)
"""What a decoder may raise for bytes of somebody else; anything else is a crash."""
_MOST_SEED_BYTES = 4096
_SHAPE = (4, 6, 8)
_LABEL_H, _LABEL_W, _CLASSES = 48, 64, 11
_DECODERS: dict[str, msgspec.msgpack.Decoder[Any]] = {
    channel.name: msgspec.msgpack.Decoder(channel.message_type) for channel in topics.CHANNELS.values()
}
_TENSOR: msgspec.msgpack.Decoder[EncodedTensor] = msgspec.msgpack.Decoder(EncodedTensor)
_WEIGHTS = msgspec.msgpack.Decoder(tuple[WeightTensor, ...])

Recorded = Sequence[tuple[str, bytes]]
"""Topics and payloads of real runs."""
Target = Callable[[bytes], object]


def _tensor(data: bytes) -> object:
    encoded = _TENSOR.decode(data)
    return decode(encoded, expected_shape=(None, *_SHAPE)).shape


def _label(data: bytes) -> object:
    return decode_label(data, height=_LABEL_H, width=_LABEL_W, num_classes=_CLASSES).shape


def _weights(data: bytes) -> object:
    tensors = _WEIGHTS.decode(data)
    return list(unpack(tensors, {tensor.name: tensor.shape for tensor in tensors}))


def _parts(intake: Intake) -> Target:
    """One client's intake, which goes on: what was left unfinished is there when the next bytes come."""

    def deliver(data: bytes) -> object:
        kind, payload = (data[0], data[1:]) if data else (0, b"")
        channel = (topics.UP, topics.DOWN, topics.STATUS, topics.EVENTS)[kind & 3]
        vehicle = "stranger" if kind & 4 else f"car-0{1 + (kind >> 3 & 1)}"
        intake.deliver(Delivery(topics.topic(channel, "fuzz", vehicle), payload, False))
        told = []
        while (received := intake.receive(0.0)) is not None:
            is_sound = not isinstance(received, Malformed)
            told.append(type(received.message).__name__ if is_sound else received.reason)
        if intake.held_bytes > 2 * INTAKE_BYTES:
            raise AssertionError(f"{intake.held_bytes} bytes are held of unfinished messages")
        return told

    return deliver


def _sealed(seal: CloudSeal) -> Target:
    """One cloud's seal: a message that it opens is one that it was given to begin with."""

    def open_up(data: bytes) -> object:
        message = seal.open(topics.UP, "car-01", data)
        if data[2:18] not in _CODES:
            raise AssertionError("a forged seal is taken")
        return len(message)

    return open_up


_SEAL = CloudSeal(bytes(32), "fuzz", "0" * 16)
_CODES: set[bytes] = set()
"""Of what it has sealed."""
INTAKE_BYTES = 1 << 20


def targets() -> dict[str, Target]:
    """By name; each takes any bytes."""
    intake = Intake(
        clock=REAL_CLOCK,
        limit_bytes=INTAKE_BYTES,
        may_send_parts=lambda vehicle: vehicle != "stranger",
        say=lambda topic, word: None,
        heed=lambda topic, word: None,
    )
    decoders: dict[str, Target] = {name: decoder.decode for name, decoder in _DECODERS.items()}
    return {
        **decoders,
        "features": _tensor,
        "label": _label,
        "weights": _weights,
        "parts": _parts(intake),
        "seal": _sealed(_SEAL),
    }


def seeds(recorded: Recorded) -> dict[str, list[bytes]]:
    """What each target begins with, of real messages."""
    begin: dict[str, list[bytes]] = {name: [] for name in targets()}
    for topic, payload in recorded:
        channel = topics.parse(topic).channel.name
        begin["parts"].append(bytes([list(topics.CHANNELS).index(channel)]) + payload)
        message = parts.whole_message(payload) if payload[:1] == b"\x00" else None
        if message is None:
            continue
        begin[channel].append(message)
        if channel == topics.UP.name:
            begin["seal"].append(b"".join(_SEAL.close(topics.UP, "car-01", [message])))
            _CODES.add(begin["seal"][-1][2:18])
        for kind, piece in _pieces(_DECODERS[channel].decode(message)):
            begin[kind].append(piece)
    begin["parts"] += [bytes(1) + part for part in parts.split(bytes(5000), 1024, 7)]
    small = {name: [data for data in found if len(data) <= _MOST_SEED_BYTES] for name, found in begin.items()}
    return {name: [*dict.fromkeys(found)] or [b"\x00"] for name, found in small.items()}


def _pieces(message: Any) -> Iterator[tuple[str, bytes]]:
    """What a message holds that has a decoder of its own."""
    for name in getattr(message, "__struct_fields__", ()):
        value = getattr(message, name)
        if isinstance(value, EncodedTensor):
            yield "features", msgspec.msgpack.encode(value)
        elif name == "labels" and type(message).__name__ == "Labels":
            yield from (("label", coded) for _, coded in value)
        elif isinstance(value, tuple) and value and isinstance(value[0], WeightTensor):
            for first in range(len(value)):
                yield "weights", msgspec.msgpack.encode(value[first : first + 2])


_NUMBERS = (
    b"\x00",
    b"\x7f",
    b"\xff",
    b"\xc0",
    b"\xcf" + b"\xff" * 8,
    b"\xce\x7f\xff\xff\xff",
    b"\xcb\x7f\xf0" + bytes(6),
)
"""In MessagePack: 0, 127, -1, nothing, the largest integers of 64 and 31 bits, infinity."""


def mutate(data: bytes, corpus: Sequence[bytes], draw: random.Random) -> bytes:
    """Something like `data`: bits turned, bytes put in, taken out or doubled, ends of others."""
    changed = bytearray(data)
    for _ in range(1 + draw.getrandbits(2)):
        size = len(changed)
        at = draw.randrange(size) if size else 0
        kind = draw.getrandbits(3)
        if kind == 0 and size:
            changed[at] ^= 1 << draw.getrandbits(3)
        elif kind == 1 and size:
            changed[at] = draw.getrandbits(8)
        elif kind == 2:
            changed[at:at] = draw.choice(_NUMBERS)
        elif kind == 3:
            del changed[at : at + 1 + draw.getrandbits(4)]
        elif kind == 4:
            changed[at:at] = changed[at : at + 1 + draw.getrandbits(5)]
        elif kind == 5:
            other = draw.choice(corpus)
            changed[at:] = other[min(at, len(other)) :]
        elif kind == 6 and size:
            changed[at : at + 1] = draw.choice(_NUMBERS)
        else:
            del changed[at : None if draw.getrandbits(2) == 0 else at + 1]
    return bytes(changed[: 2 * _MOST_SEED_BYTES])


def read_recorded(path: Path) -> Recorded:
    """What `write_recorded` has written."""
    return msgspec.msgpack.decode(path.read_bytes(), type=list[tuple[str, bytes]])


def write_recorded(path: Path, recorded: Iterable[tuple[str, bytes]]) -> None:
    """Keep topics and payloads of a run."""
    path.write_bytes(msgspec.msgpack.encode([*recorded]))
