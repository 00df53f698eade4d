"""Virtual time: whoever waits skips to what happens next; who computes, computes for real.

Those that wait by the clock (the cloud, each host and its workers) are its participants. One of them goes on
at a time; when it waits, the earliest event is next, and of several at one time the one that was planned
first. So a run is the same, event by event, however fast the machine is and whatever else it does. A
participant is a thread that waits for its baton.
"""

from __future__ import annotations

import heapq
import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fleet.simulation.spent import Spent
from protocol.charging import charged
from protocol.session.clock import Item, Running

_LONG_S = 1e9
_Action = Callable[[], "_Participant | None"]


class Event:
    """Something that will happen, unless it is cancelled."""

    __slots__ = ("action", "cancelled", "time_s")

    def __init__(self, time_s: float, action: _Action) -> None:
        self.time_s = time_s
        self.action = action
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class EventQueue:
    """Events by time; of one time, in the order in which they were planned."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Event]] = []
        self._numbers = itertools.count()

    def add(self, event: Event) -> None:
        heapq.heappush(self._heap, (event.time_s, next(self._numbers), event))

    def pop(self) -> Event | None:
        """The next event that was not cancelled; None where there is none."""
        return None if self.next_time() is None else heapq.heappop(self._heap)[2]

    def next_time(self) -> float | None:
        """When it is due; None where there is none."""
        while self._heap and self._heap[0][2].cancelled:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None


class _Participant:
    """One that waits by the clock: a thread, and the baton that lets it go on."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.baton = threading.Semaphore(0)
        self.wake: Event | None = None
        self.computed_s = 0.0
        """Of what it has computed and not waited for yet."""
        self.has_left = False
        self.awaited_by: list[_Participant] = []

    def add(self, seconds: float) -> None:
        """It has computed what takes so long."""
        self.computed_s += seconds


class _Started:
    """A thread that the clock has started."""

    def __init__(self, clock: VirtualClock, who: _Participant) -> None:
        self._clock = clock
        self._who = who

    def join(self) -> None:
        self._clock.join(self._who)


class VirtualClock:
    """A clock that stands still while anybody computes; `Clock` says what its methods do."""

    def __init__(self, names: Sequence[str], spent: Spent, *, start_s: float = 0.0) -> None:
        """`names` of those who take part from the beginning: time begins when each has come;
        `spent` says what computing takes, and is told who was busy for how long."""
        self._now = start_s
        self._spent = spent
        self._order = tuple(names)
        self._expected = set(names)
        self._came: dict[str, _Participant] = {}
        """Of `names`, those who have come."""
        self._present = 0
        self._gate = threading.Lock()
        """Around who has come, before the first goes on."""
        self._own = threading.local()
        self._events = EventQueue()
        self._awaiting: dict[int, list[_Participant]] = {}
        """By the identity of an inbox: who waits for an item there, in the order of their coming."""

    def now(self) -> float:
        return self._now

    def at(self, time_s: float, action: Callable[[], None]) -> Event:
        """Plan an action; it must not wait."""

        def act() -> None:
            action()

        return self._plan(time_s, act)

    def take(self, inbox: queue.Queue[Item], timeout_s: float) -> Item:
        self.catch_up()
        if inbox.empty() and timeout_s > 0:
            me = self._me()
            waiting = self._awaiting.setdefault(id(inbox), [])
            waiting.append(me)
            self._sleep(me, timeout_s)
            waiting.remove(me)
            if not waiting:
                self._awaiting.pop(id(inbox), None)
        return inbox.get_nowait()

    def put(self, inbox: queue.Queue[Item], item: Item) -> None:
        inbox.put_nowait(item)
        self.notify(inbox)

    def notify(self, inbox: queue.Queue[Any]) -> None:
        for waiting in self._awaiting.get(id(inbox), ()):
            if self._wake_now(waiting):
                return

    def pause(self, condition: threading.Condition, timeout_s: float) -> None:
        condition.release()
        try:
            self.sleep(timeout_s)
        finally:
            condition.acquire()

    def sleep(self, seconds: float) -> None:
        """Let others go on for so long."""
        self._sleep(self._me(), seconds)

    def catch_up(self) -> None:
        me: _Participant | None = getattr(self._own, "participant", None)
        if me is not None and me.computed_s > 0:
            seconds, me.computed_s = me.computed_s, 0.0
            self._sleep(me, seconds)

    @contextmanager
    def every(self, interval_s: float, action: Callable[[], None], name: str) -> Iterator[None]:
        """Call `action` again and again while the context is open; `name` is of no use here."""
        del name
        planned: list[Event] = []

        def tick() -> None:
            action()
            planned[:] = [self.at(self._now + interval_s, tick)]

        planned.append(self.at(self._now + interval_s, tick))
        try:
            yield
        finally:
            planned[0].cancel()

    def start(self, target: Callable[[], None], name: str) -> Running:
        who = _Participant(name)
        self._present += 1
        self._wake(who, self._now)

        def run() -> None:
            self._take_part(who)
            try:
                target()
            finally:
                self._leave(who)

        threading.Thread(target=run, name=name).start()
        return _Started(self, who)

    @contextmanager
    def participant(self, name: str) -> Iterator[None]:
        who = _Participant(name)
        with self._gate:
            self._present += 1
            self._came[name] = who
            self._expected.discard(name)
            self._begin_if_all_came()
        self._take_part(who)
        try:
            yield
        finally:
            self._leave(who)

    @contextmanager
    def working(self, name: str) -> Iterator[None]:
        me = self._me()
        with charged(self._spent.charge(name, me.add)):
            yield
        self.catch_up()

    def join(self, who: _Participant) -> None:
        """Wait until this participant has left."""
        while not who.has_left:
            me = self._me()
            who.awaited_by.append(me)
            self._sleep(me, _LONG_S)

    def _take_part(self, who: _Participant) -> None:
        who.baton.acquire()
        self._own.participant = who

    def _leave(self, who: _Participant) -> None:
        self._own.participant = None
        who.has_left = True
        self._present -= 1
        for waiting in who.awaited_by:
            self._wake_now(waiting)
        self._go_on(None)

    def _begin_if_all_came(self) -> None:
        if self._expected or not self._came:
            return
        for name in self._order:
            if name in self._came:
                self._wake(self._came[name], self._now)
        self._go_on(None)

    def _me(self) -> _Participant:
        me: _Participant = self._own.participant
        return me

    def _plan(self, time_s: float, action: _Action) -> Event:
        event = Event(max(time_s, self._now), action)
        self._events.add(event)
        return event

    def _wake(self, who: _Participant, time_s: float) -> None:
        who.wake = self._plan(time_s, lambda: who)

    def _wake_now(self, who: _Participant) -> bool:
        """Whether it would have slept longer."""
        if who.wake is None or who.wake.time_s <= self._now:
            return False
        who.wake.cancel()
        self._wake(who, self._now)
        return True

    def _sleep(self, me: _Participant, seconds: float) -> None:
        self._wake(me, self._now + seconds)
        self._go_on(me)

    def _go_on(self, me: _Participant | None) -> None:
        """Let happen what is next, until it is somebody's turn; returns when it is `me`'s, or at once."""
        while self._present:
            event = self._events.pop()
            assert event is not None, "whoever waits has planned when to go on"
            self._now = event.time_s
            following = event.action()
            if following is None:
                continue
            if following is not me:
                following.baton.release()
                if me is not None:
                    me.baton.acquire()
            return
