"""How a process is told to stop: by the terminal, by its supervisor, or because the terminal has gone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPED_CODE = 130
"""Exit code of a process that was stopped by any of them."""


def on_stop_signal(stop: Callable[[signal.Signals], None], *, patience: int = 1) -> None:
    """Call `stop` with each of the first `patience` signals; the next one ends the process at once.

    What the process was started to ignore (`nohup`, a shell's `&`) stays ignored, SIGTERM apart. Process 1 of
    a container ends only by signals that it handles, so this belongs before anything that takes long.
    """
    heard = 0

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        nonlocal heard
        heard += 1
        if heard > patience:
            os._exit(STOPPED_CODE)
        stop(signal.Signals(number))

    for number in STOP_SIGNALS:
        if number is signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handle)


def end_on_stop_signals() -> None:
    """Until somebody asks for more: end the process at once and say nothing, there is nothing to put away."""
    on_stop_signal(lambda _: os._exit(STOPPED_CODE))
