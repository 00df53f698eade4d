"""The processes of a simulated fleet, in one table, started, watched and restarted alike."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from fleet.errors import OperatorError
from fleet.run.controls import Refused
from fleet.run.places import Place, Process
from protocol.atomic import write_json_atomic

log = logging.getLogger(__name__)

_USER_ERROR = 2
_MAX_RESTARTS = 20
_MAX_FAULTS = 3
"""A program that ends with an error code by itself will do so again, other than one that was killed."""
_GRACE_S = 10.0
_READY_S = 60.0
_POLL_S = 0.05
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_PR_SET_PDEATHSIG = 1
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_PATIENT_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads of torch that wait for each other sleep: where somebody else has their core they would burn it,
and a step took up to twice as long. The user's own setting goes before it."""


@dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """One row of the table."""

    name: str
    command: Sequence[str]
    threads: int = 1
    """What numerical libraries in it may use."""
    restart_arguments: Sequence[str] = ()
    """Added to the command when it is started again after a crash."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to the launcher's own: what must not stand in the list of processes, as the command does."""
    is_ready: Callable[[], bool] = lambda: True
    """Whether the process can be used yet; the next row starts when it can."""
    may_fail: bool = False
    """The run goes on when this process has ended for good because of a mistake or fault."""
    comes_back: bool = False
    """After a mistake or fault it is started again, ever more rarely: somebody will mend it."""
    leads: bool = False
    """The run ends when this process has ended well."""
    stays: bool = False
    """Goes on while the run is paused: the others need it to come back."""
    vehicles: tuple[str, ...] = ()
    """Ids of those that it runs."""
    place: Place | None = None
    """Where it runs; None: on this machine."""


@dataclass(kw_only=True)
class _Running:
    spec: ProcessSpec
    process: Process
    restarts: int = 0
    faults: int = 0
    """How often it ended with an error code, not by a signal."""
    done: bool = False
    has_failed: bool = False
    due_s: float | None = None
    """When it is tried again, of the monotonic clock; None: it runs."""
    pause_s: float = _FIRST_PAUSE_S
    held: bool = False
    """Ended because the operator wanted it to; nobody starts it again but the operator."""
    log_path: Path = field(default_factory=Path)


class Tell(Protocol):
    """Told what becomes of the processes: an event of the run's log."""

    def __call__(self, name: str, /, **values: Any) -> None: ...


def _tell_nobody(name: str, /, **values: Any) -> None:
    pass


class ProcessTable:
    """Owns the processes: on leaving, all of them have ended."""

    def __init__(self, specs: Sequence[ProcessSpec], folder: Path, tell: Tell = _tell_nobody) -> None:
        """`folder` gets a log file per process and `processes.json` with the ids of those on this machine."""
        self._specs = specs
        self._folder = folder
        self._tell = tell
        self._running: list[_Running] = []
        self._paused = False

    def __enter__(self) -> ProcessTable:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._tell("processes", processes={spec.name: list(spec.vehicles) for spec in self._specs})
        try:
            for spec in self._specs:
                log_path = self._folder / f"{spec.name}.log"
                self._running.append(
                    _Running(spec=spec, process=self._start(spec, (), log_path), log_path=log_path)
                )
                self._write_ids()
                self._wait_ready(self._running[-1])
        except BaseException:
            self._stop_all()
            raise
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop_all()

    def check(self) -> bool:
        """Look after every process; False when the leading one has ended well.

        Raises:
            OperatorError: one ended because of a mistake or fault, or crashed too often.
        """
        leader_done = False
        for running in self._running:
            code = running.process.poll()
            if code is None or running.done or running.held:
                continue
            if code == 0:
                running.done = True
                leader_done = leader_done or running.spec.leads
                continue
            running.faults += code > 0
            hopeless = running.restarts >= _MAX_RESTARTS or running.faults >= _MAX_FAULTS
            if code == _USER_ERROR or hopeless:
                if not running.spec.comes_back:
                    self._give_up(running, code)
                    continue
                if not self._is_due(running, code):
                    continue
            self._restart(running, code)
            if running.spec.leads:
                self._restart_done()
        return not leader_done

    def kill(self, name: str) -> None:
        """End a process at once, as a crash would; it stays so until it is revived.

        Raises:
            Refused: it doesn't run.
        """
        running = self._find(name)
        if running.process.poll() is not None:
            raise Refused(f"{name} does not run")
        running.held = True
        running.process.kill()
        running.process.wait()
        self._tell("killed", process=name)

    def revive(self, name: str) -> None:
        """Start a process that was killed.

        Raises:
            Refused: it wasn't, or the run is paused.
        """
        running = self._find(name)
        if self._paused:
            raise Refused("the run is paused; resume it first")
        if not running.held:
            raise Refused(f"{name} was not killed")
        self._tell("revived", process=name)
        self._start_again(running)

    def pause(self) -> None:
        """End all but those that stay, in order: what they have committed is kept, and they use no core.

        Raises:
            Refused: the run is paused.
        """
        if self._paused:
            raise Refused("the run is paused already")
        self._paused = True
        pausing = [running for running in self._running if not running.spec.stays and not running.done]
        for running in pausing:
            running.held = True
        self._end(pausing)
        self._tell("paused")

    def resume(self) -> None:
        """Start again what pausing has ended, and what was killed.

        Raises:
            Refused: the run is not paused.
        """
        if not self._paused:
            raise Refused("the run is not paused")
        self._paused = False
        self._tell("resumed")
        for running in self._running:
            if running.held:
                self._start_again(running)

    def _find(self, name: str) -> _Running:
        for running in self._running:
            if running.spec.name == name:
                return running
        raise Refused(f"the run has no process or vehicle {name!r}")

    def _start_again(self, running: _Running) -> None:
        running.held = False
        running.process = self._start(running.spec, running.spec.restart_arguments, running.log_path)
        self._write_ids()

    def _is_due(self, running: _Running, code: int) -> bool:
        """Whether a process that somebody has to mend is to be tried again now."""
        if running.due_s is None:
            running.pause_s = min(2 * running.pause_s, _LONGEST_PAUSE_S)
            running.due_s = time.monotonic() + running.pause_s
            reason = _last_line(running.log_path, f"{running.spec.name} ended with code {code}")
            log.warning("%s is tried again in %g s: %s", running.spec.name, running.pause_s, reason)
        if time.monotonic() < running.due_s:
            return False
        running.due_s = None
        return True

    def _give_up(self, running: _Running, code: int) -> None:
        reason = _last_line(running.log_path, f"{running.spec.name} ended with code {code}")
        if not running.spec.may_fail:
            raise OperatorError(reason)
        running.done = running.has_failed = True
        if all(other.has_failed for other in self._running if other.spec.may_fail):
            raise OperatorError(f"every process that may fail has failed; the last one: {reason}")
        log.warning("%s has ended with code %d, the run goes on: %s", running.spec.name, code, reason)

    def wait_all_but_first(self, timeout_s: float) -> None:
        """Give every process but the first (the broker) time to end by itself."""
        deadline = time.monotonic() + timeout_s
        for running in self._running[1:]:
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(max(0.0, deadline - time.monotonic()))

    def _restart_done(self) -> None:
        """Those that had been told that the run is over are needed again by a leader that starts again."""
        for running in self._running:
            if running.done:
                running.done = running.has_failed = False
                running.process = self._start(running.spec, running.spec.restart_arguments, running.log_path)
        self._write_ids()

    def _restart(self, running: _Running, code: int) -> None:
        running.restarts += 1
        how = f"signal {-code}" if code < 0 else f"code {code}"
        log.warning(
            "%s ended unexpectedly (%s); starting it again (%d of %d)",
            running.spec.name,
            how,
            running.restarts,
            _MAX_RESTARTS,
        )
        self._tell("crashed", process=running.spec.name, how=how)
        self._start_again(running)

    def _start(self, spec: ProcessSpec, more: Sequence[str], log_path: Path) -> Process:
        threads = dict.fromkeys(_THREAD_VARIABLES, str(spec.threads))
        if spec.place is not None:
            patient = {name: os.environ.get(name, value) for name, value in _PATIENT_THREADS.items()}
            environment = {**patient, **threads, **spec.environment}
            return spec.place.start(spec.name, [*spec.command, *more], environment, log_path)
        environment = {**_PATIENT_THREADS, **os.environ, **threads, **spec.environment}
        with log_path.open("ab") as output:
            return subprocess.Popen(
                [*spec.command, *more],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                # Ctrl-C reaches the launcher alone, which then stops the others in order.
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def _wait_ready(self, running: _Running) -> None:
        deadline = time.monotonic() + _READY_S
        while not running.spec.is_ready():
            code = running.process.poll()
            if code is not None and code < 0 and running.restarts < _MAX_RESTARTS:
                self._restart(running, code)
            elif code is not None:
                raise OperatorError(
                    _last_line(running.log_path, f"{running.spec.name} ended with code {code}")
                )
            if time.monotonic() > deadline:
                raise OperatorError(
                    f"{running.spec.name} was not ready in {_READY_S:g} s, see {running.log_path}"
                )
            time.sleep(_POLL_S)

    def _write_ids(self) -> None:
        ids: Mapping[str, int] = {
            running.spec.name: running.process.pid
            for running in self._running
            if isinstance(running.process, subprocess.Popen)  # ids of other machines mean nothing here
        }
        write_json_atomic(self._folder / "processes.json", ids, sync=False)

    def _stop_all(self) -> None:
        self._end(self._running)

    @staticmethod
    def _end(ending: Sequence[_Running]) -> None:
        for running in reversed(ending):
            if running.process.poll() is None:
                running.process.terminate()
        deadline = time.monotonic() + _GRACE_S
        try:
            for running in reversed(ending):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    running.process.wait(max(0.1, deadline - time.monotonic()))
        finally:
            # Also when whoever stops the run won't wait: nobody is left when the folder's lock goes.
            for running in reversed(ending):
                running.process.kill()
                running.process.wait()


def die_with_parent() -> None:
    """On Linux, be told to stop when the launcher is gone, however it went."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _last_line(path: Path, otherwise: str) -> str:
    """The last line that a process wrote: its own account of why it ended."""
    try:
        lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return f"{lines[-1]} (whole log: {path})" if lines else otherwise
