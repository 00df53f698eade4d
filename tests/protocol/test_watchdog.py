"""A supervisor hears that all loops of a process work, and of none that is stuck."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from protocol.watchdog import Watchdog


class Supervised:
    """A watchdog with a clock that stands still until it is moved, and the supervisor's end of it."""

    def __init__(self, **environment: str) -> None:
        self.now = 100.0
        self.address = f"@blackfleet-test-{os.getpid()}"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(self.address.replace("@", "\0"))
        self.watchdog = Watchdog({"NOTIFY_SOCKET": self.address, **environment}, clock=lambda: self.now)
        self.one, self.two = self.watchdog.watch("one"), self.watchdog.watch("two")

    def told(self) -> list[str]:
        """What it has been told since."""
        heard = []
        while True:
            try:
                heard.append(self.socket.recv(100).decode())
            except BlockingIOError:
                return heard


@pytest.fixture
def supervised() -> Iterator[Supervised]:
    made = Supervised(WATCHDOG_USEC="40000000")
    yield made
    made.socket.close()


def test_process_is_ready_when_all_its_loops_run(supervised: Supervised) -> None:
    supervised.one()
    supervised.one()
    assert supervised.told() == []
    supervised.two()
    assert supervised.told() == ["READY=1"]


def test_loops_that_work_are_told_of_four_times_in_the_time_that_is_given(supervised: Supervised) -> None:
    for _ in range(45):
        supervised.one()
        supervised.two()
        supervised.now += 1
    assert supervised.told() == ["READY=1", *4 * ["WATCHDOG=1"]]


def test_one_loop_that_is_stuck_silences_all_until_it_comes_on_or_leaves(supervised: Supervised) -> None:
    supervised.one()
    supervised.two()
    assert supervised.told() == ["READY=1"]
    for _ in range(100):
        supervised.one()
        supervised.now += 1
    assert supervised.told() == []
    supervised.two()
    assert supervised.told() == ["WATCHDOG=1"]
    supervised.watchdog.leave("two")
    supervised.now += 11
    supervised.one()
    assert supervised.told() == ["WATCHDOG=1"]
    supervised.watchdog.leave("one")
    assert supervised.told() == ["STOPPING=1"]


@pytest.mark.parametrize(
    "asked", [{}, {"WATCHDOG_USEC": "40", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}]
)
def test_who_is_not_asked_for_pings_sends_none(asked: dict[str, str]) -> None:
    supervised = Supervised(**asked)
    for _ in range(10):
        supervised.one()
        supervised.two()
        supervised.now += 100
    assert supervised.told() == ["READY=1"]
    supervised.socket.close()


def test_supervisor_that_has_gone_is_complained_of_once(
    supervised: Supervised, caplog: pytest.LogCaptureFixture
) -> None:
    supervised.socket.close()
    for _ in range(3):
        supervised.one()
        supervised.two()
        supervised.now += 100
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "the supervisor can't be told READY=1"
    ]
    Watchdog().watch("alone")()
    assert len(caplog.records) == 1
