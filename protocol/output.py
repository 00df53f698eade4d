"""Output whose reader may leave, as `head` does: no business of what a command does and ends with."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

_READER_HAS_LEFT = (errno.EPIPE, errno.EIO)
"""A pipe that nobody reads any more, a terminal that has been closed."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def outlive_readers() -> None:
    """Let stdout and stderr go nowhere once nobody reads them, instead of ending the command.

    Where a full disk has no room for what stderr says, those words are lost: a process must be able to end as
    it should when it can't say why.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # Nothing to do where they are closed, or somebody has put something else in their place.
        if stream is None or stream is not getattr(sys, f"__{name}__"):
            continue
        stream.flush()
        patient = io.TextIOWrapper(
            io.BufferedWriter(_Patient(stream.fileno(), needs_room=name == "stdout")),
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=name == "stderr" or stream.isatty(),
        )
        setattr(sys, name, patient)


class _Patient(io.RawIOBase):
    """Writes to a file descriptor as long as somebody reads from it."""

    def __init__(self, descriptor: int, *, needs_room: bool) -> None:
        self._descriptor = descriptor
        self._needs_room = needs_room

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            return os.write(self._descriptor, data)
        except OSError as error:
            if error.errno in _NO_ROOM and not self._needs_room:
                return len(data)
            if error.errno not in _READER_HAS_LEFT:
                raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._descriptor)
        os.close(nowhere)
        return len(data)
