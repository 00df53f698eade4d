"""Messages larger than a broker takes travel in parts; a small one costs a single byte of framing.

Payload: `0x00 message`, or `0x01 id:u64 crc32:u32 count:u16 index:u16 chunk`, big endian; `0x02` in the place
of `0x01` asks the receiver how far it is. The checksum is of the whole message: it tells apart messages that
reuse an id after a restart, and guards the reassembly. Beside them go words about a message in parts,
`kind id:u64 have:u16`: see `Word`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from protocol.errors import BlackfleetError, WireError

_WHOLE = b"\x00"
_PART = 1
_ASKING_PART = 2
_HEADER = struct.Struct(">BQIHH")
_WORD = struct.Struct(">BQH")
_MAX_PARTS = 0xFFFF


class PartsError(WireError):
    """A payload that is no message and no part of one."""


class MessageTooLarge(BlackfleetError, ValueError):
    """A message that its receiver could not take; the text names both sizes."""


class Say(IntEnum):
    """What a `Word` says of a message in parts."""

    HAVE = 3
    """Receiver → sender: I have the first `have` parts."""
    BACK = 4
    """Receiver → sender: I have the first `have` parts and lack the next one, which won't come: go back."""
    ASK = 5
    """Sender → receiver: how far are you? To be answered with `BACK`; `have` is 0."""


_SAYS = frozenset(int(say) for say in Say)


class Word(NamedTuple):
    """How far a message in parts has come."""

    say: Say
    message_id: int
    have: int

    def pack(self) -> bytes:
        """The payload that says it."""
        return _WORD.pack(self.say, self.message_id, self.have)


def read_word(payload: bytes) -> Word | None:
    """The word that `payload` is, or None."""
    if len(payload) != _WORD.size or payload[0] not in _SAYS:
        return None
    kind, message_id, have = _WORD.unpack(payload)
    return Word(Say(kind), message_id, have)


class Framed(Sequence[bytes]):
    """A message as payloads, each made when it is needed.

    The message may be given in pieces, so that many messages can share what they have in common.
    """

    def __init__(self, pieces: Sequence[bytes], limit_bytes: int, message_id: int) -> None:
        """`message_id` (0 ≤ id < 2⁶⁴) should differ between the messages that one sender has under way.

        Raises:
            MessageTooLarge: it would need more parts than can be numbered.
        """
        self._chunk_bytes = limit_bytes - _HEADER.size
        if self._chunk_bytes <= 0:
            raise ValueError(f"a part must be allowed more than {_HEADER.size} bytes, got {limit_bytes}")
        self.message_id = message_id
        self.message_bytes = sum(map(len, pieces))
        self.pieces = pieces
        self._whole = self.message_bytes + len(_WHOLE) <= limit_bytes
        self._count = 1 if self._whole else -(-self.message_bytes // self._chunk_bytes)
        if self._count > _MAX_PARTS:
            raise MessageTooLarge(
                f"message of {self.message_bytes} bytes needs {self._count} parts of {limit_bytes} bytes: "
                f"over {_MAX_PARTS}"
            )
        self._checksum = 0
        if not self._whole:
            for piece in pieces:
                self._checksum = zlib.crc32(piece, self._checksum)

    def __len__(self) -> int:
        return self._count

    @property
    def is_whole(self) -> bool:
        """Whether the message travels in one payload."""
        return self._whole

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]  # slices are of no use here
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self.payload(index)

    def payload(self, index: int, *, asks: bool = False) -> bytes:
        """One payload; `asks` the receiver of a part how far it is."""
        if self._whole:
            return b"".join((_WHOLE, *self.pieces))
        kind = _ASKING_PART if asks else _PART
        header = _HEADER.pack(kind, self.message_id, self._checksum, self._count, index)
        return b"".join((header, *self._between(index * self._chunk_bytes, (index + 1) * self._chunk_bytes)))

    def size(self, index: int) -> int:
        """Bytes of one payload."""
        if self._whole:
            return len(_WHOLE) + self.message_bytes
        if index < self._count - 1:
            return _HEADER.size + self._chunk_bytes
        return _HEADER.size + self.message_bytes - (self._count - 1) * self._chunk_bytes

    def release(self) -> None:
        """Let go of the message: it has arrived, and no payload is asked for any more."""
        self.pieces = ()

    def _between(self, first: int, end: int) -> list[memoryview]:
        found, offset = [], 0
        for piece in self.pieces:
            low, high = max(first - offset, 0), min(end - offset, len(piece))
            if low < high:
                found.append(memoryview(piece)[low:high])
            offset += len(piece)
        return found


def split(payload: bytes, limit_bytes: int, message_id: int) -> list[bytes]:
    """Frame `payload` into pieces of at most `limit_bytes` each, for a `Reassembler`."""
    return list(Framed([payload], limit_bytes, message_id))


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a message as it arrived."""

    message_id: int
    checksum: int
    count: int
    index: int
    chunk: bytes
    asks: bool


def is_part(payload: bytes) -> bool:
    """Whether `payload` claims to be a part of a larger message."""
    return payload[:1] in (bytes([_PART]), bytes([_ASKING_PART]))


def whole_message(payload: bytes) -> bytes | None:
    """The message, where `payload` holds all of it."""
    return payload[1:] if payload[:1] == _WHOLE else None


def read_part(payload: bytes) -> Part:
    """Which message a part belongs to, its place there, and its content.

    Raises:
        PartsError: it is no part.
    """
    if len(payload) <= _HEADER.size or not is_part(payload):
        raise PartsError(
            f"{len(payload)} bytes starting with {payload[:1].hex() or 'nothing'} are no message"
        )
    kind, message_id, checksum, count, index = _HEADER.unpack_from(payload)
    if index >= count:
        raise PartsError(f"part {index} of {count} does not exist")
    return Part(message_id, checksum, count, index, payload[_HEADER.size :], kind == _ASKING_PART)
