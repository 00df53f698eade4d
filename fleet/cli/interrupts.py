"""Signals that stop the operator's command: one line, everything ended in order, exit code 130."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

from protocol.stopping import STOPPED_CODE, on_stop_signal


class Interrupted(BaseException):
    """Somebody wants the command to stop; raised in the main thread, wherever that is.

    No KeyboardInterrupt, which the command line's library answers by itself, with another code.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.by = "" if number is signal.SIGINT else f" by {number.name}"


def interrupt_on_signals() -> None:
    """From now on the first signal to stop raises `Interrupted`, and so does a second one, in the midst of
    stopping: what was given time to end is then killed. A third one ends this process."""

    def interrupt(number: signal.Signals) -> None:
        raise Interrupted(number)

    on_stop_signal(interrupt, patience=2)


@contextlib.contextmanager
def stopping_line(go_on: str = "") -> Iterator[None]:
    """Say in one line that the command was stopped, and how to go on, where that is possible."""
    try:
        yield
    except Interrupted as interrupted:
        print(f"blackfleet: stopped{interrupted.by}{f'; {go_on}' if go_on else ''}", file=sys.stderr)
        raise SystemExit(STOPPED_CODE) from None


@contextlib.contextmanager
def stopped_at_once() -> Iterator[None]:
    """End the process at once where the body was stopped.

    By then everything is ended in order and said. A thread that is still at work (a second signal gives a
    fleet in memory no time to end) would meet an interpreter that takes itself apart, and abort the process.
    """
    try:
        yield
    except SystemExit as end:
        if end.code != STOPPED_CODE:
            raise
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(STOPPED_CODE)
