"""The loop that heeds all waiting vehicles of a host."""

from __future__ import annotations

import threading
import time

from edge_client.conversation import Stopped
from edge_client.crew import Crew, Seat
from protocol.messages import Turn
from protocol.session.clock import REAL_CLOCK


class _Waiting:
    """A vehicle for which nothing ever arrives."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self.looks = 0

    def open(self, timeout_s: float) -> None:
        pass

    def attend(self) -> Turn | None:
        self.looks += 1
        if self._stop.is_set():
            raise Stopped
        return None

    def work(self, turn: Turn) -> None:
        raise AssertionError("it is granted none")

    def stamp(self) -> None:
        pass


def test_many_waiting_vehicles_are_looked_at_seldom_but_all_leave_soon_when_they_are_to_stop() -> None:
    stop = threading.Event()
    vehicles = [_Waiting(stop) for _ in range(2000)]
    seats = [Seat(str(number), vehicle, lambda error: None) for number, vehicle in enumerate(vehicles)]
    crew = Crew(seats, REAL_CLOCK, connect_timeout_s=1.0, look_every_s=0.1, must_stop=stop.is_set)
    threading.Timer(0.5, stop.set).start()
    began = time.monotonic()
    crew.run()
    assert time.monotonic() - began < 12.0, "long before the second look at all is due"
    assert all(vehicle.looks <= 3 for vehicle in vehicles)
