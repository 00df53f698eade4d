"""Two processes of one vehicle: the one that was there first stays while it lives.

A vehicle that crashed comes back as a new process with a new session; so does the copy of a card that runs in
a second car. The broker tells them apart: it publishes the last will of a process that is gone. Where no will
comes (the broker died, too), silence tells: a process that lives shows it with every heartbeat.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from cloud_server.desk.registry import Registry
from protocol.messages import Hello

_LEFTOVERS_S = 1.0
"""What a process had sent before it died arrives within this."""
_SHORTEST_WAIT_S = 2.0


@dataclass(frozen=True, kw_only=True)
class _Newcomer:
    hello: Hello
    since: float


class Newcomers:
    """Those who have said hello as a vehicle whose earlier process may still live; they wait outside."""

    def __init__(
        self, registry: Registry, heartbeat_s: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._registry = registry
        self._wait_s = max(_SHORTEST_WAIT_S, 2 * heartbeat_s)
        self._clock = clock
        self._waiting: dict[str, _Newcomer] = {}

    def must_wait(self, hello: Hello) -> bool:
        """Whether the vehicle's present process is another one and not known to be gone."""
        record = self._registry.record(hello.vehicle)
        if record.hello is None or record.session == hello.session:
            return False
        if record.is_gone:
            self._waiting.pop(hello.vehicle, None)
            return False
        earlier = self._waiting.get(hello.vehicle)
        since = earlier.since if earlier else self._clock()
        self._waiting[hello.vehicle] = _Newcomer(hello=hello, since=since)
        return True

    def refused_by(self, vehicle: str, session: str) -> Hello | None:
        """A process shows that it lives: the hello that can't be granted any more, if there is one."""
        newcomer = self._waiting.get(vehicle)
        lives = session == self._registry.record(vehicle).session
        if newcomer is None or not lives or self._clock() - newcomer.since < _LEFTOVERS_S:
            return None
        return self._waiting.pop(vehicle).hello

    def admitted(self) -> list[Hello]:
        """The hellos that have waited long enough, or whose predecessor has gone by now."""
        now = self._clock()
        free = [
            vehicle
            for vehicle, newcomer in self._waiting.items()
            if self._registry.record(vehicle).is_gone or now - newcomer.since > self._wait_s
        ]
        return [self._waiting.pop(vehicle).hello for vehicle in free]

    def broker_was_away(self) -> None:
        """Silence was the broker's doing: the wait begins anew."""
        now = self._clock()
        self._waiting = {
            vehicle: _Newcomer(hello=newcomer.hello, since=now) for vehicle, newcomer in self._waiting.items()
        }
