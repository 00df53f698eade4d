"""Processes on other nodes, held as `fleet.run.processes` holds those of its own machine."""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fleet.cluster.node import NodeProcess
from fleet.cluster.resources import CPU, actor_options, told

log = logging.getLogger(__name__)

_LOST = -int(signal.SIGKILL)
_FAULT = 1
_ROOM_S = 15.0
"""So long a process waits for a node with room before something is done or said."""
_SIGNAL_S = 5.0
_POLL_S = 0.02


class RayPlace:
    """Whatever node has what the processes reserve, spread over those that do."""

    def __init__(self, ray: Any, amounts: Mapping[str, float], *, may_share: bool) -> None:
        """`may_share`: where no node has room, a process is started all the same and shares CPUs."""
        self._ray = ray
        self._amounts = amounts
        self._may_share = may_share

    def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], output: Path
    ) -> RayProcess:
        """See `fleet.run.places.Place`."""
        told_to = (name, list(command), dict(environment), output.absolute())
        return RayProcess(self._ray, told_to, self._amounts, may_share=self._may_share)


class RayProcess:
    """One process as an actor; as `fleet.run.places.Process`."""

    def __init__(
        self,
        ray: Any,
        told_to: tuple[str, list[str], dict[str, str], Path],
        amounts: Mapping[str, float],
        *,
        may_share: bool,
    ) -> None:
        self._ray = ray
        self._name = told_to[0]
        self._output = told_to[3]
        self._told_to = told_to
        self._amounts = dict(amounts)
        self._may_share = may_share and amounts.get(CPU, 0) > 0
        self._code: int | None = None
        self._is_placed = False
        self._create()

    def poll(self) -> int | None:
        """The exit code; None while it runs, or waits for a node."""
        if self._code is None and self._has_come(self._end):
            self._code = self._outcome()
            self._ray.kill(self._actor)  # what it had reserved is free again
        elif self._code is None and not self._placed() and time.monotonic() > self._due_s:
            self._make_room()
        return self._code

    def terminate(self) -> None:
        """Ask it to end; one that has no node yet ends at once."""
        if self._placed():
            self._actor.signal.remote(int(signal.SIGTERM))
        else:
            self.kill()

    def kill(self) -> None:
        """End it at once."""
        if self.poll() is not None:
            return
        if self._placed():
            with contextlib.suppress(*self._errors()):
                self._ray.get(self._actor.signal.remote(int(signal.SIGKILL)), timeout=_SIGNAL_S)
        self._ray.kill(self._actor)
        self._code = _LOST

    def wait(self, timeout: float | None = None) -> int:
        """The exit code."""
        deadline = None if timeout is None else time.monotonic() + timeout
        # Asleep here, not inside Ray, which would take the exception of a signal for a fault of its own.
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self._name, timeout or 0.0)
            time.sleep(_POLL_S)
        return code

    def _create(self) -> None:
        actor = self._ray.remote(NodeProcess).options(
            **actor_options(self._amounts),
            scheduling_strategy="SPREAD",
            max_restarts=0,  # it is the launcher's table that starts processes again
            max_concurrency=3,
        )
        self._actor = actor.remote(*self._told_to)
        self._there = self._actor.started.remote()
        self._end = self._actor.end.remote()
        self._due_s = time.monotonic() + _ROOM_S

    def _placed(self) -> bool:
        self._is_placed = self._is_placed or self._has_come(self._there)
        return self._is_placed

    def _has_come(self, answer: Any) -> bool:
        ready, _ = self._ray.wait([answer], timeout=0)
        return bool(ready)

    def _outcome(self) -> int:
        try:
            return int(self._ray.get(self._end))
        except self._ray.exceptions.RayActorError as error:
            if getattr(error, "actor_init_failed", False):
                self._note(f"can't be started: {_last_line(error)}")
                return _FAULT
            self._note("its node, or the actor that held it, is lost")
            return _LOST

    def _make_room(self) -> None:
        self._due_s = time.monotonic() + _ROOM_S
        free = self._ray.available_resources()
        if all(free.get(name, 0.0) >= amount for name, amount in self._amounts.items()):
            return  # there is room: its node is busy with starting it
        if self._may_share:
            self._note(f"no node has {told(self._amounts)} free: it shares the cores of others")
            self._ray.kill(self._actor)
            self._amounts[CPU] = 0
            self._may_share = False
            self._create()
        else:
            self._due_s += 3 * _ROOM_S
            self._note(f"waits for a node that has {told(self._amounts)} free")

    def _note(self, what: str) -> None:
        """Say it in the launcher's log and in the process's own."""
        log.warning("%s: %s", self._name, what)
        with contextlib.suppress(OSError), self._output.open("a", encoding="utf-8") as file:
            file.write(f"--- {self._name}: {what}\n")

    def _errors(self) -> tuple[type[Exception], ...]:
        return (self._ray.exceptions.RayError, self._ray.exceptions.GetTimeoutError)


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
