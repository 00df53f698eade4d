"""Whose loop is stuck falls silent; whose step is only long does not."""

from __future__ import annotations

import logging

import pytest

from protocol.messages import Status
from protocol.session.presence import Presence


class Sender:
    """A presence with a clock that stands still until it is moved."""

    def __init__(self, step_s: float) -> None:
        self.now = 100.0
        self.said: list[Status] = []
        self.presence = Presence(self._announce, "car-1", "ab" * 8, step_s=step_s, clock=lambda: self.now)

    def _announce(self, status: Status) -> int:
        self.said.append(status)
        return 40

    def beats_after(self, seconds: float) -> bool:
        """Whether a beat that is due after so long is said."""
        self.now += seconds
        before = len(self.said)
        self.presence.beat()
        return len(self.said) > before


def test_nothing_is_repeated_before_it_was_said() -> None:
    assert not Sender(step_s=10).beats_after(1)


def test_loop_that_works_beats_for_as_long_as_it_likes() -> None:
    sender = Sender(step_s=10)
    sender.presence.announce()
    for _ in range(20):
        sender.presence.stamp()
        assert sender.beats_after(9), "one step, long but not too long"
    assert [status.beat for status in sender.said] == list(range(21))


def test_stuck_loop_falls_silent_and_is_heard_again_when_it_comes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sender = Sender(step_s=10)
    sender.presence.announce()
    with caplog.at_level(logging.WARNING):
        assert sender.beats_after(6)
        assert not sender.beats_after(6)
        assert not sender.beats_after(6)
        sender.presence.stamp()
        assert sender.beats_after(6)
    assert [record.message for record in caplog.records] == [
        "car-1 has come no further for 12 s (limit 10 s): it no longer says that it is alive",
        "car-1 has come on again",
    ]


def test_goodbye_of_a_stuck_sender_is_said() -> None:
    sender = Sender(step_s=10)
    sender.presence.announce()
    sender.now += 60
    sender.presence.announce(online=False)
    assert not sender.said[-1].online
