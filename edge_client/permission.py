"""Whether a vehicle may work now, as the car's integrator says: by a file, or by a command.

Parked, charging, on a network that costs nothing: the car knows, not we. Who may not work goes on speaking
with the cloud, and does what it was at when it may again.
"""

from __future__ import annotations

import logging
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from edge_client.errors import VehicleError

log = logging.getLogger(__name__)

COMMAND = "command:"
"""Begins a command; anything else is a file."""
_COMMAND_TIMEOUT_S = 10.0
_MOST_BYTES = 64


class Permission:
    """Asks seldom; in between the latest answer holds. What is no clear yes is a no, and a line says why."""

    def __init__(
        self, when: str | None, *, poll_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`when`: a file that says `yes` or `no`, or `command:` and a command line that ends with 0 for
        yes and anything else for no; None = always.

        Raises:
            VehicleError: there is no such command.
        """
        self._when = when
        self._poll_s = poll_s
        self._clock = clock
        self._lock = threading.Lock()
        self._asked_at: float | None = None
        self._refused = ""
        """Why not; empty: it may."""
        self._words: list[str] = []
        if when is not None and when.startswith(COMMAND):
            self._words = _words(when.removeprefix(COMMAND))

    def holds(self) -> bool:
        """Whether to work now; from any thread."""
        if self._when is None:
            return True
        with self._lock:
            now = self._clock()
            if self._asked_at is None or now - self._asked_at >= self._poll_s:
                self._asked_at = now
                self._note(self._of_command() if self._words else self._of_file(Path(self._when)))
            return not self._refused

    @property
    def is_refused(self) -> bool:
        """Whether the latest answer was a no; asks nobody."""
        return bool(self._refused)

    def _note(self, refused: str) -> None:
        if refused and refused != self._refused:
            log.info("work pauses: %s", refused)
        elif self._refused and not refused:
            log.info("work goes on: %s allows it", self._when)
        self._refused = refused

    def _of_file(self, path: Path) -> str:
        try:
            with path.open("rb") as file:
                said = file.read(_MOST_BYTES).strip().lower()
        except OSError as error:
            return f"{path} can't be read ({error.strerror}); yes or no was expected in it"
        if said in (b"yes", b"no"):
            return "" if said == b"yes" else f"{path} says no"
        return f"{path} says {said[:20]!r}; yes or no was expected"

    def _of_command(self) -> str:
        try:
            done = subprocess.run(
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_COMMAND_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"{self._words[0]} has not ended within {_COMMAND_TIMEOUT_S:g} s"
        except OSError as error:
            return f"{self._words[0]} can't be run ({error.strerror})"
        return f"{self._words[0]} ended with {done.returncode}" if done.returncode else ""


def _words(line: str) -> list[str]:
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise VehicleError(f"--when {COMMAND}{line}: {error}; give a command line") from error
    if not words or shutil.which(words[0]) is None:
        raise VehicleError(
            f"--when {COMMAND}{line}: no such command; give a program, and words for it if need be"
        )
    return words
