"""The vehicles of a host, driven by few threads: one heeds all that wait, workers do the turns.

A vehicle that waits needs nobody: what arrives for it wakes the loop, which otherwise looks at each now and
then. Only a turn, which computes and asks and waits in its own course, has a thread for as long as it lasts.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Protocol

from protocol.messages import Turn
from protocol.session.clock import Clock, Running

log = logging.getLogger(__name__)

MOST_WORKERS = 32
"""Turns of one host that may be under way at once; further ones wait for a worker."""
_AT_THE_DOOR = 4
"""Vehicles that connect, or leave, at once: that waits for the network."""
_LEAST_CONNECT_S = 1.0
"""For a vehicle that comes to connect after the time for it has run out, as others were slow."""
_LOOK_S, _MOST_LOOK_S = 0.01, 30.0
"""A vehicle's share of the period in which all that wait are looked at; a look takes a hundredth of it."""
_HEED_STOP_S = 0.5
"""That nobody goes unseen for longer once the process is asked to stop."""
_IDLE_S = 60.0


class Drives(Protocol):
    """What the crew needs of a vehicle."""

    def open(self, timeout_s: float) -> None:
        """Connect; blocks."""

    def attend(self) -> Turn | None:
        """Heed what has arrived, without waiting; the turn that it was granted, if any."""

    def work(self, turn: Turn) -> None:
        """Do a turn; blocks."""

    def stamp(self) -> None:
        """Somebody looks after the vehicle: it is alive."""


class _At(Enum):
    DOOR = "not connected"
    REST = "waits for a turn"
    LINE = "waits for a worker"
    WORK = "in a turn"
    LEAVING = "leaves"
    GONE = "has left"


@dataclass
class Seat:
    """One vehicle of the host."""

    name: str
    vehicle: Drives
    leave: Callable[[Exception], Drives | None]
    """Told once why the vehicle has come to its end; closes what it has open, and may wait for that. Gives
    the one that takes its place, if one does."""
    at: _At = _At.DOOR
    woken: bool = False
    """Whether it is in the line of those to be looked at."""


class Crew:
    """Runs the vehicles of a host until the last has left."""

    def __init__(
        self,
        seats: Sequence[Seat],
        clock: Clock,
        *,
        connect_timeout_s: float,
        look_every_s: float,
        most_workers: int = MOST_WORKERS,
        must_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """`look_every_s`: how long a vehicle that nothing arrives for goes unseen, at the least; of many
        vehicles longer, but when the process `must_stop`."""
        self._seats = seats
        self._clock = clock
        self._connect_timeout_s = connect_timeout_s
        self._connect_by = clock.now() + connect_timeout_s
        self._look_every_s = max(look_every_s, min(_MOST_LOOK_S, _LOOK_S * len(seats)))
        self._must_stop = must_stop
        self._woken: queue.Queue[Seat] = queue.Queue()
        self._door = _Workers(min(_AT_THE_DOOR, len(seats)), clock)
        self._workers = _Workers(min(most_workers, len(seats)), clock)

    def wake(self, seat: Seat) -> None:
        """Something has arrived for a vehicle; from any thread."""
        # Two threads may both find it asleep: it is looked at twice then.
        if not seat.woken:
            seat.woken = True
            self._clock.put(self._woken, seat)

    def run(self) -> None:
        """Connect all vehicles, let them work, and return when the last has left."""
        thread = threading.current_thread()
        own_name = thread.name
        for seat in self._seats:
            self._door.do(partial(self._open, seat, None))
        looked_at = float("-inf")
        try:
            while any(seat.at is not _At.GONE for seat in self._seats):
                if self._clock.now() >= looked_at + self._period_s():
                    for seat in self._seats:
                        self._look(seat)
                    looked_at = self._clock.now()
                self._heed_woken(looked_at)
        finally:
            thread.name = own_name
            self._workers.close()
            self._door.close()

    def _heed_woken(self, looked_at: float) -> None:
        """Look at those for whom something has arrived, until it is time to look at all again."""
        while (left_s := looked_at + self._period_s() - self._clock.now()) > 0:
            try:
                seat = self._clock.take(self._woken, min(left_s, _HEED_STOP_S))
            except queue.Empty:
                continue
            seat.woken = False
            self._look(seat)
            if seat.at is _At.GONE:
                return

    def _period_s(self) -> float:
        return min(self._look_every_s, _HEED_STOP_S) if self._must_stop() else self._look_every_s

    def _look(self, seat: Seat) -> None:
        if seat.at is _At.LINE:
            seat.vehicle.stamp()
        if seat.at is not _At.REST:
            return
        threading.current_thread().name = seat.name
        try:
            turn = seat.vehicle.attend()
        except Exception as error:  # any failure of one vehicle ends it, not its neighbours
            self._end(seat, error)
            return
        if turn is not None:
            seat.at = _At.LINE
            self._workers.do(partial(self._work, seat, turn))

    # In workers -------------------------------------------------------------------------------------------

    def _open(self, seat: Seat, timeout_s: float | None) -> None:
        """Connect, in `timeout_s`; None: in what is left for all."""
        threading.current_thread().name = seat.name
        if timeout_s is None:
            timeout_s = max(_LEAST_CONNECT_S, self._connect_by - self._clock.now())
        try:
            seat.vehicle.open(timeout_s)
        except Exception as error:  # as above
            self._end(seat, error)
            return
        self._rest(seat)

    def _work(self, seat: Seat, turn: Turn) -> None:
        threading.current_thread().name = seat.name
        seat.at = _At.WORK
        try:
            with self._clock.working(seat.name):
                seat.vehicle.work(turn)
        except Exception as error:  # as above
            self._end(seat, error)
            return
        self._rest(seat)

    def _rest(self, seat: Seat) -> None:
        """Back to those that wait; what has come meanwhile is looked at once."""
        seat.at = _At.REST
        seat.woken = True
        self._clock.put(self._woken, seat)

    def _end(self, seat: Seat, error: Exception) -> None:
        seat.at = _At.LEAVING
        self._door.do(partial(self._leave, seat, error))

    def _leave(self, seat: Seat, error: Exception) -> None:
        threading.current_thread().name = seat.name
        successor = None
        try:
            successor = seat.leave(error)
        finally:
            if successor is None:
                seat.at = _At.GONE
                self._clock.put(self._woken, seat)
        if successor is not None:
            seat.vehicle, seat.at = successor, _At.DOOR
            self._door.do(partial(self._open, seat, self._connect_timeout_s))


class _Workers:
    """Threads that are started when there is something to do and nobody idle, up to a number."""

    def __init__(self, most: int, clock: Clock) -> None:
        self._most = most
        self._clock = clock
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._threads: list[Running] = []
        self._idle = 0
        """Workers that wait, less jobs that wait."""
        self._lock = threading.Lock()

    def do(self, job: Callable[[], None]) -> None:
        """Have a job done by whoever is idle first; from any thread."""
        with self._lock:
            self._idle -= 1
            if self._idle < 0 and len(self._threads) < self._most:
                self._idle += 1
                self._threads.append(self._clock.start(self._run, "worker"))
        self._clock.put(self._jobs, job)

    def close(self) -> None:
        """Wait until all jobs are done, and end the threads."""
        for _ in self._threads:
            self._clock.put(self._jobs, None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while True:
            try:
                job = self._clock.take(self._jobs, _IDLE_S)
            except queue.Empty:
                continue
            if job is None:
                return
            try:
                job()
            finally:
                with self._lock:
                    self._idle += 1
