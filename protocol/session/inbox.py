"""What has arrived and waits to be read: senders take turns, and one that is too much is not heard."""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from protocol.session.clock import Clock

Item = TypeVar("Item")

FORGIVEN_PER_S, MOST_OFFENCES = 50.0, 200
"""Refused messages: more in short time than any accident brings."""
HEARD_PER_S, MOST_HEARD = 1_000.0, 10_000
"""All messages and parts: more than a vehicle sends that waits for answers."""
STATUSES_PER_S, MOST_STATUSES = 10.0, 500
"""Statuses: nobody waits for an answer to one, and of a flood a slow reader gets fewer in a second than are
forgiven of messages."""
_MUTED_S, _LONGEST_MUTE_S = 10.0, 320.0


@dataclass(frozen=True, slots=True)
class Waiting(Generic[Item]):
    """One of a sender's messages."""

    sender: str
    item: Item
    size: int
    """In bytes."""


class FairInbox(queue.Queue[Waiting[Item]]):
    """A queue with a lane for each sender, read in turn: nobody waits for a neighbour who talks much."""

    def __init__(self, *, most: int, most_of_one: int, most_bytes_of_one: int) -> None:
        """`most` messages of all together, `most_of_one` of a sender; and of a sender so many bytes, or a
        single message."""
        super().__init__(most)
        self._most_of_one = most_of_one
        self._most_bytes_of_one = most_bytes_of_one

    def offer(self, waiting: Waiting[Item]) -> bool:
        """Put a message at the end of its sender's lane, if there is room for it."""
        with self.mutex:
            lane = self._lanes.get(waiting.sender, ())
            held_bytes = self._bytes.get(waiting.sender, 0)
            has_room = self._qsize() < self.maxsize and (
                not lane
                or (len(lane) < self._most_of_one and held_bytes + waiting.size <= self._most_bytes_of_one)
            )
            if has_room:
                self._put(waiting)
                self.unfinished_tasks += 1
                self.not_empty.notify()
            return has_room

    # What `queue.Queue` calls, under its lock -------------------------------------------------------------

    def _init(self, maxsize: int) -> None:
        self._lanes: OrderedDict[str, deque[Waiting[Item]]] = OrderedDict()
        """By sender; the first is read next."""
        self._bytes: dict[str, int] = {}
        self._count = 0

    def _qsize(self) -> int:
        return self._count

    def _put(self, item: Waiting[Item]) -> None:
        self._lanes.setdefault(item.sender, deque()).append(item)
        self._bytes[item.sender] = self._bytes.get(item.sender, 0) + item.size
        self._count += 1

    def _get(self) -> Waiting[Item]:
        sender, lane = next(iter(self._lanes.items()))
        waiting = lane.popleft()
        self._count -= 1
        if lane:
            self._bytes[sender] -= waiting.size
            self._lanes.move_to_end(sender)
        else:
            del self._lanes[sender], self._bytes[sender]
        return waiting


class _Bucket:
    """Counts what runs off at a steady rate."""

    def __init__(self, per_s: float, most: int, now: float) -> None:
        self._per_s, self._most, self._at = per_s, most, now
        self._level = 0.0

    def overflows(self, now: float, weight: float = 1.0) -> bool:
        """Whether one more is too much; then it is empty again."""
        self._level = max(0.0, self._level - self._per_s * (now - self._at)) + weight
        self._at = now
        if self._level <= self._most:
            return False
        self._level = 0.0
        return True


class _Sender:
    """What is known of one sender."""

    def __init__(self, now: float) -> None:
        self.refused = _Bucket(FORGIVEN_PER_S, MOST_OFFENCES, now)
        self.heard = _Bucket(HEARD_PER_S, MOST_HEARD, now)
        self.statuses = _Bucket(STATUSES_PER_S, MOST_STATUSES, now)
        self.muted_until = float("-inf")
        self.mutes = 0


class Mutes:
    """Whom nobody listens to for a while: who is refused again and again, or sends more than anybody needs.

    A mute is twice as long as the one before, if that ended less than its own time ago.
    """

    def __init__(self, clock: Clock, on_mute: Callable[[str, int, float], None]) -> None:
        """`on_mute` hears of each one: whose, the how manieth it is of all, and for how many seconds."""
        self.unheard = 0
        """Messages of muted senders that came all the same."""
        self.count = 0
        self._clock = clock
        self._on_mute = on_mute
        self._lock = threading.Lock()
        self._senders: dict[str, _Sender] = {}
        self._latest_end = float("-inf")
        """Of all mutes: nobody is muted from then on, which is asked for each message."""

    def refused(self, sender: str, weight: float = 1.0) -> None:
        """Something that this sender said was refused, or so much less than that; called by the reader."""
        with self._lock:
            known, now = self._sender(sender)
            told = self._mute(known, now) if known.refused.overflows(now, weight) else None
        if told is not None:
            self._on_mute(sender, *told)

    def hears(self, sender: str, weight: float = 1.0, *, is_status: bool = False) -> bool:
        """Whether a message of this sender is to be kept, which counts so much; called for each of them."""
        with self._lock:
            known, now = self._sender(sender)
            if now < known.muted_until:
                self.unheard += 1
                return False
            bucket = known.statuses if is_status else known.heard
            told = self._mute(known, now) if bucket.overflows(now, weight) else None
        if told is not None:
            self._on_mute(sender, *told)
        return told is None

    def muted(self) -> frozenset[str]:
        """Who is muted now."""
        with self._lock:
            now = self._clock.now()
            if now >= self._latest_end:
                return frozenset()
            return frozenset(name for name, known in self._senders.items() if now < known.muted_until)

    def _sender(self, sender: str) -> tuple[_Sender, float]:
        now = self._clock.now()
        known = self._senders.get(sender)
        if known is None:
            known = self._senders[sender] = _Sender(now)
        return known, now

    def _mute(self, known: _Sender, now: float) -> tuple[int, float] | None:
        if now < known.muted_until:
            return None
        seconds = min(_MUTED_S * 2**known.mutes, _LONGEST_MUTE_S)
        if known.mutes and now - known.muted_until > seconds / 2:
            known.mutes, seconds = 0, _MUTED_S
        known.mutes += 1
        known.muted_until = now + seconds
        self._latest_end = max(self._latest_end, known.muted_until)
        self.count += 1
        return self.count, seconds
