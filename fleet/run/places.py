"""Where the processes of a run are when they are not all on the launcher's machine.

What is done with them is the same everywhere (`fleet.run.processes`); how another machine is asked is
behind these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Process(Protocol):
    """One that was started, as `subprocess.Popen` has it: an exit code below 0 is a signal."""

    def poll(self) -> int | None:
        """The exit code; None while it runs."""

    def terminate(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it at once."""

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; `subprocess.TimeoutExpired` after so many seconds."""


class Place(Protocol):
    """Somewhere else."""

    def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], output: Path
    ) -> Process:
        """Start `command`, whose first word stands for the Python there; what it says is put behind what
        `output` holds. A machine that is lost ends it with the code of SIGKILL."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What every machine must see of a run."""

    run_folder: Path
    data_root: Path | None
    """Of the data set; None: it lies in the run's folder."""
    broker: str | None
    """URL; None: one is started by the launcher, which only its own machine reaches."""
    identity: str
    """Some vehicle's id, by whose certificate the broker is tried."""


class Machines(Protocol):
    """Other machines for the processes of a run."""

    hosts: Place
    """Of those that vehicles run in."""
    cloud: Place | None
    """None: the cloud is on the launcher's machine."""
    places: int
    """Vehicle hosts that may compute at once."""

    def check(self, needs: Needs) -> None:
        """Look at every machine before anything begins.

        Raises:
            OperatorError: one can't do its part; the message names it and says what to do.
        """
