"""Messages larger than a broker takes travel in parts; a small one costs a single byte of framing.

Payload: `0x00 message`, or `0x01 id:u64 crc32:u32 count:u16 index:u16 chunk`, big endian. The checksum is of
the whole message: it tells apart messages that reuse an id after a restart, and guards the reassembly.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter, OrderedDict
from typing import NamedTuple

from protocol.errors import WireError

_WHOLE = b"\x00"
_PART = 1
_HEADER = struct.Struct(">BQIHH")
_MAX_PARTS = 0xFFFF


class PartsError(WireError, ValueError):
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


class _Key(NamedTuple):
    sender: str
    message_id: int
    checksum: int
    parts: int


class Reassembler:
    """Puts parts together, in whatever order and however often they arrive.

    Holds at most `max_pending` unfinished messages, each of at most `max_message_bytes`; when there are more,
    the oldest of the sender that has most of them is dropped. A message repeated as a whole is returned
    again: what a repetition means is for the reader of the message to decide.
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
        self._pending: OrderedDict[_Key, dict[int, bytes]] = OrderedDict()

    def feed(self, sender: str, payload: bytes) -> bytes | None:
        """The whole message that `payload` is or completes, else None.

        Raises `PartsError` for what is no frame, exceeds `max_message_bytes` or fails its checksum.
        """
        if payload[:1] == _WHOLE:
            self._check_size(len(payload) - 1)
            return payload[1:]
        if len(payload) <= _HEADER.size or payload[0] != _PART:
            raise PartsError(
                f"{len(payload)} bytes starting with {payload[:1].hex() or 'nothing'} are no message"
            )
        _, message_id, checksum, count, index = _HEADER.unpack_from(payload)
        if index >= count:
            raise PartsError(f"part {index} of {count} does not exist")
        chunk = payload[_HEADER.size :]
        key = _Key(sender, message_id, checksum, count)
        chunks = self._pending.get(key, {})
        if chunks.get(index, chunk) != chunk:
            del self._pending[key]
            raise PartsError(f"part {index} of message {message_id} arrived with two contents")
        held_bytes = sum(map(len, chunks.values())) if chunks else 0
        if index not in chunks:
            try:
                self._check_size(held_bytes + len(chunk))
            except PartsError:
                self._pending.pop(key, None)
                raise
        chunks[index] = chunk
        if len(chunks) < count:
            self._pending[key] = chunks
            self._make_room()
            return None
        self._pending.pop(key, None)
        message = b"".join(chunks[i] for i in range(count))
        if zlib.crc32(message) != checksum:
            raise PartsError(f"message {message_id} of {count} parts fails its checksum")
        return message

    def _check_size(self, message_bytes: int) -> None:
        if message_bytes > self._max_message_bytes:
            raise PartsError(
                f"message of at least {message_bytes} bytes, at most {self._max_message_bytes} allowed"
            )

    def _make_room(self) -> None:
        if len(self._pending) <= self._max_pending:
            return
        busiest = Counter(key.sender for key in self._pending).most_common(1)[0][0]
        oldest = next(key for key in self._pending if key.sender == busiest)
        del self._pending[oldest]
        self.dropped += 1
