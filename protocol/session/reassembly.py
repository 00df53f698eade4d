"""Parts back into messages, and how far each message has come."""

from __future__ import annotations

import zlib
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import NamedTuple

from protocol.session.parts import Part, PartsError, Say, Word, read_part, whole_message

_REMEMBERED = 16
"""Finished messages of a sender whose late parts are known as repetitions."""


@dataclass(frozen=True, slots=True)
class Collected:
    """A message all of which has arrived."""

    chunks: tuple[bytes, ...]
    checksum: int | None
    """Of all chunks together; None where one payload held the message."""
    message_id: int = 0
    packet_bytes: int = 0
    """Of the packets that it came in, each part once."""

    def join(self) -> bytes:
        """The message.

        Raises:
            PartsError: it fails its checksum.
        """
        message = b"".join(self.chunks)
        if self.checksum is not None and zlib.crc32(message) != self.checksum:
            raise PartsError(f"message {self.message_id} of {len(self.chunks)} parts fails its checksum")
        return message


class Arrival(NamedTuple):
    """What one payload has brought."""

    message: Collected | None = None
    """Where it was the last that was missing."""
    answer: Word | None = None
    """What the sender should be told."""
    repeated: bool = False
    """It had been here before."""


class _Key(NamedTuple):
    message_id: int
    checksum: int
    total: int


@dataclass(slots=True)
class _Unfinished:
    """What has arrived of one message."""

    chunks: dict[int, bytes] = field(default_factory=dict)
    bytes: int = 0
    packet_bytes: int = 0
    have: int = 0
    """Parts from the first to the first that is missing."""
    sent_back_to: int = -1
    """`have` of the latest `BACK`: a gap is told once."""


@dataclass(slots=True)
class _Room:
    """What is kept of one sender."""

    unfinished: OrderedDict[_Key, _Unfinished] = field(default_factory=OrderedDict)
    finished: deque[_Key] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))


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
        self._rooms: dict[str, _Room] = {}

    @property
    def held_bytes(self) -> int:
        """Bytes of all unfinished messages of all senders."""
        return sum(entry.bytes for room in self._rooms.values() for entry in room.unfinished.values())

    def feed(self, sender: str, payload: bytes) -> bytes | None:
        """The whole message that `payload` is or completes, else None.

        Raises `PartsError` for what is no frame, exceeds `max_message_bytes` or fails its checksum.
        """
        message = self.take(sender, payload).message
        return None if message is None else message.join()

    def take(self, sender: str, payload: bytes, packet_bytes: int = 0) -> Arrival:
        """Keep what has arrived, in a packet of so many bytes.

        Raises:
            PartsError: it is no frame, or exceeds `max_message_bytes`.
        """
        message = whole_message(payload)
        if message is not None:
            self._check_size(len(message))
            return Arrival(Collected((message,), None, packet_bytes=packet_bytes))
        part = read_part(payload)
        key = _Key(part.message_id, part.checksum, part.count)
        room = self._rooms.setdefault(sender, _Room())
        entry = room.unfinished.setdefault(key, _Unfinished())
        was_finished = key in room.finished
        repeated = self._add(room, key, part, 0 if was_finished else packet_bytes) or was_finished
        if entry.have == part.count:
            del room.unfinished[key]
            room.finished.append(key)
            chunks = tuple(entry.chunks[index] for index in range(part.count))
            message_done = Collected(chunks, part.checksum, part.message_id, entry.packet_bytes)
            return Arrival(message_done, Word(Say.HAVE, part.message_id, part.count), repeated)
        if was_finished:
            return Arrival(None, Word(Say.HAVE, part.message_id, part.count), repeated)
        return Arrival(None, _answer(entry, part), repeated)

    def progress(self, sender: str, message_id: int) -> Word:
        """The answer to a sender that asks how far one of its messages is."""
        room = self._rooms.get(sender, _Room())
        for key, entry in room.unfinished.items():
            if key.message_id == message_id and key not in room.finished:
                return Word(Say.BACK, message_id, entry.have)
        for key in room.finished:
            if key.message_id == message_id:
                return Word(Say.HAVE, message_id, key.total)
        return Word(Say.BACK, message_id, 0)

    def unfinished(self) -> list[tuple[str, Word]]:
        """By sender, where each unfinished message is to go on after a lost connection."""
        return [
            (sender, Word(Say.BACK, key.message_id, entry.have))
            for sender, room in self._rooms.items()
            for key, entry in room.unfinished.items()
            if key not in room.finished
        ]

    def _add(self, room: _Room, key: _Key, part: Part, packet_bytes: int) -> bool:
        """Keep a part; whether it was here before."""
        entry = room.unfinished[key]
        if (known := entry.chunks.get(part.index)) is not None:
            if known != part.chunk:
                del room.unfinished[key]
                raise PartsError(f"part {part.index} of message {key.message_id} arrived with two contents")
            return True
        try:
            self._check_size(entry.bytes + len(part.chunk))
        except PartsError:
            del room.unfinished[key]
            raise
        entry.chunks[part.index] = part.chunk
        entry.bytes += len(part.chunk)
        entry.packet_bytes += packet_bytes
        while entry.have in entry.chunks:
            entry.have += 1
        self._make_room(room, key)
        return False

    def _make_room(self, room: _Room, newest: _Key) -> None:
        held_bytes = sum(entry.bytes for entry in room.unfinished.values())
        while len(room.unfinished) > self._max_pending or held_bytes > self._max_message_bytes:
            oldest = next(key for key in room.unfinished if key != newest)
            held_bytes -= room.unfinished.pop(oldest).bytes
            self.dropped += 1

    def _check_size(self, message_bytes: int) -> None:
        if message_bytes > self._max_message_bytes:
            raise PartsError(
                f"message of at least {message_bytes} bytes, at most {self._max_message_bytes} allowed"
            )


def _answer(entry: _Unfinished, part: Part) -> Word | None:
    """What to tell the sender of a part: how far it is if it asks; once, that a part before is missing."""
    if entry.have < part.index and entry.sent_back_to != entry.have:
        entry.sent_back_to = entry.have
        return Word(Say.BACK, part.message_id, entry.have)
    return Word(Say.HAVE, part.message_id, entry.have) if part.asks else None
