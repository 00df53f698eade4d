"""Messages larger than a broker takes travel in parts; a small one costs a single byte of framing.

Payload: `0x00 message`, or `0x01 id:u64 crc32:u32 count:u16 index:u16 chunk`, big endian. The checksum is of
the whole message: it tells apart messages that reuse an id after a restart, and guards the reassembly.
"""

from __future__ import annotations

import struct
import zlib
from collections import OrderedDict
from typing import NamedTuple

from protocol.errors import WireError

_WHOLE = b"\x00"
_PART = 1
_HEADER = struct.Struct(">BQIHH")
_MAX_PARTS = 0xFFFF


class PartsError(WireError):
    """A payload that is no message and no part of one."""


def split(payload: bytes, limit_bytes: int, message_id: int) -> list[bytes]:
    """Frame `payload` into pieces of at most `limit_bytes` each, for `Reassembler.feed`.

    `message_id` (0 ≤ id < 2⁶⁴) should differ between the messages that one sender has under way.
    """
    chunk_bytes = limit_bytes - _HEADER.size
    if chunk_bytes <= 0:
        raise ValueError(f"a part must be allowed more than {_HEADER.size} bytes, got {limit_bytes}")
    if len(payload) + len(_WHOLE) <= limit_bytes:
        return [_WHOLE + payload]
    count = -(-len(payload) // chunk_bytes)
    if count > _MAX_PARTS:
        raise ValueError(
            f"message of {len(payload)} bytes needs {count} parts of {limit_bytes} bytes: over {_MAX_PARTS}"
        )
    checksum = zlib.crc32(payload)
    view = memoryview(payload)
    return [
        _HEADER.pack(_PART, message_id, checksum, count, index)
        + view[index * chunk_bytes : (index + 1) * chunk_bytes]
        for index in range(count)
    ]


def is_part(payload: bytes) -> bool:
    """Whether `payload` claims to be a part of a larger message."""
    return payload[:1] == bytes([_PART])


class _Key(NamedTuple):
    message_id: int
    checksum: int
    parts: int


class _Unfinished:
    """What has arrived of one message."""

    def __init__(self) -> None:
        self.chunks: dict[int, bytes] = {}
        self.bytes = 0


class Reassembler:
    """Puts parts together, in whatever order and however often they arrive.

    Every sender has a room of its own: at most `max_pending` unfinished messages and `max_message_bytes` of
    them all together. Where it wants more, its oldest unfinished message is dropped; no sender can take the
    room of another, and all of them hold at most `max_message_bytes` for each sender. A message repeated as a
    whole is returned again: what a repetition means is for the reader of the message to decide.
    """

    def __init__(self, max_message_bytes: int, max_pending: int) -> None:
        if max_message_bytes < 1 or max_pending < 1:
            raise ValueError(
                f"both limits must be positive, got {max_message_bytes} bytes and {max_pending} messages"
            )
        self.dropped = 0
        """Unfinished messages given up to make room."""
        self._max_message_bytes = max_message_bytes
        self._max_pending = max_pending
        self._pending: dict[str, OrderedDict[_Key, _Unfinished]] = {}

    @property
    def held_bytes(self) -> int:
        """Bytes of all unfinished messages of all senders."""
        return sum(entry.bytes for room in self._pending.values() for entry in room.values())

    def feed(self, sender: str, payload: bytes) -> bytes | None:
        """The whole message that `payload` is or completes, else None.

        Raises `PartsError` for what is no frame, exceeds `max_message_bytes` or fails its checksum.
        """
        if payload[:1] == _WHOLE:
            self._check_size(len(payload) - 1)
            return payload[1:]
        key, index, chunk = _read_part(payload)
        room = self._pending.setdefault(sender, OrderedDict())
        entry = room.setdefault(key, _Unfinished())
        if (known := entry.chunks.get(index)) is None:
            self._add(room, key, index, chunk)
        elif known != chunk:
            self._forget(sender, key)
            raise PartsError(f"part {index} of message {key.message_id} arrived with two contents")
        if len(entry.chunks) < key.parts:
            return None
        self._forget(sender, key)
        message = b"".join(entry.chunks[i] for i in range(key.parts))
        if zlib.crc32(message) != key.checksum:
            raise PartsError(f"message {key.message_id} of {key.parts} parts fails its checksum")
        return message

    def _add(self, room: OrderedDict[_Key, _Unfinished], key: _Key, index: int, chunk: bytes) -> None:
        entry = room[key]
        try:
            self._check_size(entry.bytes + len(chunk))
        except PartsError:
            del room[key]
            raise
        entry.chunks[index] = chunk
        entry.bytes += len(chunk)
        held_bytes = sum(other.bytes for other in room.values())
        while len(room) > self._max_pending or held_bytes > self._max_message_bytes:
            oldest = next(other for other in room if other != key)
            held_bytes -= room.pop(oldest).bytes
            self.dropped += 1

    def _forget(self, sender: str, key: _Key) -> None:
        del self._pending[sender][key]
        if not self._pending[sender]:
            del self._pending[sender]

    def _check_size(self, message_bytes: int) -> None:
        if message_bytes > self._max_message_bytes:
            raise PartsError(
                f"message of at least {message_bytes} bytes, at most {self._max_message_bytes} allowed"
            )


def _read_part(payload: bytes) -> tuple[_Key, int, bytes]:
    """Which message a part belongs to, its place there, and its content."""
    if len(payload) <= _HEADER.size or payload[0] != _PART:
        raise PartsError(
            f"{len(payload)} bytes starting with {payload[:1].hex() or 'nothing'} are no message"
        )
    _, message_id, checksum, count, index = _HEADER.unpack_from(payload)
    if index >= count:
        raise PartsError(f"part {index} of {count} does not exist")
    return _Key(message_id, checksum, count), index, payload[_HEADER.size :]
