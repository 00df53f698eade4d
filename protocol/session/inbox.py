"""What has arrived and waits to be read: senders take turns, and one that talks nonsense is not heard."""

from __future__ import annotations

import queue
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from protocol.session.clock import Clock

Item = TypeVar("Item")

_FORGIVEN_PER_S = 50.0
MOST_OFFENCES = 500
"""More in short time than any accident brings."""
_MUTED_S = 10.0


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


@dataclass(slots=True)
class _Offences:
    count: float = 0.0
    at: float = 0.0
    muted_until: float = float("-inf")


class Mutes:
    """Whom nobody listens to for a while, because what they say is refused again and again.

    Written by the reader's thread, read by the network's.
    """

    def __init__(self, clock: Clock, say: Callable[[str, int, float], None]) -> None:
        """`say` hears of each mute: whose, the how manieth it is, and for how many seconds."""
        self.unheard = 0
        """Messages of muted senders."""
        self.muted = 0
        self._clock = clock
        self._say = say
        self._by_sender: dict[str, _Offences] = {}

    def refused(self, sender: str) -> None:
        """Something that this sender said was refused."""
        now = self._clock.now()
        offences = self._by_sender.setdefault(sender, _Offences(at=now))
        offences.count = max(0.0, offences.count - _FORGIVEN_PER_S * (now - offences.at)) + 1
        offences.at = now
        if offences.count > MOST_OFFENCES and now >= offences.muted_until:
            offences.count = 0.0
            offences.muted_until = now + _MUTED_S
            self.muted += 1
            self._say(sender, self.muted, _MUTED_S)

    def is_muted(self, sender: str) -> bool:
        """Whether a message of this sender is to be left out; it is counted."""
        offences = self._by_sender.get(sender)
        if offences is None or self._clock.now() >= offences.muted_until:
            return False
        self.unheard += 1
        return True
