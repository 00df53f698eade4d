"""What an operator asks of a fleet at work: pause, resume, stop, kill and revive one of its processes.

Asked by any thread, done by the launcher's own, between two looks at its processes.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol


class Refused(Exception):
    """What was asked can't be done now; one readable line."""


class Processes(Protocol):
    """What carries it out; each raises `Refused`."""

    def kill(self, name: str) -> None:
        """End a process at once and leave it so."""

    def revive(self, name: str) -> None:
        """Start it again."""

    def pause(self) -> None:
        """End every process in order but those that the others need to come back."""

    def resume(self) -> None:
        """Start them again."""


@dataclass(kw_only=True)
class _Asked:
    action: str
    process: str
    done: threading.Event = field(default_factory=threading.Event)
    refusal: str | None = None


class Controls:
    """Between those who ask and the launcher."""

    _ANSWER_S = 30.0
    """Pausing waits for processes to end."""

    def __init__(self) -> None:
        self._asked: queue.Queue[_Asked] = queue.Queue(maxsize=16)
        self._hosts: Mapping[str, str] | None = None

    def open(self, hosts: Mapping[str, str]) -> None:
        """From now on somebody serves; `hosts` has the process of each vehicle."""
        self._hosts = hosts

    def close(self) -> None:
        """Nobody serves any longer; what waits is refused."""
        self._hosts = None
        while not self._asked.empty():
            asked = self._asked.get_nowait()
            asked.refusal = "the run has ended"
            asked.done.set()

    def press(self, action: str, what: str) -> None:
        """Ask, and wait until it is done.

        Args:
            action: `stop`, `pause`, `resume`, `kill` or `revive`.
            what: the process to kill or revive, or a vehicle in it.

        Raises:
            Refused: it can't be done.
        """
        if action == "stop":
            # As Ctrl-C does; the launcher ends everything in order and says how to go on.
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if action not in _ACTIONS:
            raise Refused(f"unknown action {action!r}; one of stop, {', '.join(_ACTIONS)}")
        hosts = self._hosts
        if hosts is None:
            raise Refused("the fleet has no processes of its own now")
        asked = _Asked(action=action, process=hosts.get(what, what))
        try:
            self._asked.put_nowait(asked)
        except queue.Full:
            raise Refused("too much is being asked at once") from None
        if not asked.done.wait(self._ANSWER_S):
            raise Refused("the launcher is busy; it will be done")
        if asked.refusal is not None:
            raise Refused(asked.refusal)

    def serve(self, processes: Processes) -> None:
        """Do what was asked since the last call; in the thread that owns the processes."""
        while True:
            try:
                asked = self._asked.get_nowait()
            except queue.Empty:
                return
            try:
                _ACTIONS[asked.action](processes, asked.process)
            except Refused as refused:
                asked.refusal = str(refused)
            finally:
                asked.done.set()


_ACTIONS: Mapping[str, Callable[[Processes, str], None]] = {
    "pause": lambda processes, _: processes.pause(),
    "resume": lambda processes, _: processes.resume(),
    "kill": lambda processes, name: processes.kill(name),
    "revive": lambda processes, name: processes.revive(name),
}
