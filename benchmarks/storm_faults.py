"""What befalls the processes of a storm: faults within a process, a line that is cut or falls silent."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import mmap
import os
import resource
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

Result = TypeVar("Result")
Within = Literal["killed in a write", "torn write", "no room", "file too large"]
_CHANGES = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink"})


@dataclass(frozen=True)
class FaultWithin:
    """A process's own fault, armed when it starts."""

    kind: Within
    at: int
    """Before which change of a file it strikes; or beyond which size in bytes no file may grow."""


CLOCK = struct.Struct("<d")


def heed_clock(path: Path) -> None:
    """Let the wall clock be wrong by what the file says at any moment.

    As Python's `time.time` tells it: libfaketime 0.9.10 makes `time.sleep` fail. Deadlines are on the
    monotonic clock, which nobody sets.
    """
    with path.open("rb") as file:
        wrong_by = mmap.mmap(file.fileno(), CLOCK.size, access=mmap.ACCESS_READ)
    right = time.time
    time.time = lambda: right() + CLOCK.unpack_from(wrong_by)[0]


def arm(fault: FaultWithin, folder: Path) -> None:
    """Let this process meet its fault: there is no way back."""
    if fault.kind in ("torn write", "file too large"):
        if fault.kind == "torn write":  # the rest of the write would be beyond: dead with half a file
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.at, fault.at))
        return
    changes = 0

    def before_change() -> None:
        nonlocal changes
        changes += 1
        if changes >= fault.at:
            if fault.kind == "killed in a write":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def heed(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            path = arguments[0]
            if isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(str(folder)):
                before_change()

    fsync = os.fsync

    def fsync_or_fault(descriptor: int) -> None:
        before_change()
        fsync(descriptor)

    os.fsync = fsync_or_fault
    sys.addaudithook(heed)


class BreakingLine:
    """`with BreakingLine(port) as line:` clients connect to `line.port`; what they say is passed on."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self._target_port = target_port
        self._pairs: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._speaks = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="line", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> BreakingLine:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, *exception: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self, choose: Callable[[int], int] | None = None) -> int:
        """Reset the connection that `choose` picks of so many, or all; how many were reset."""

        async def cut() -> int:
            pairs = [pair for pair in self._pairs if not pair[0].is_closing()]
            if choose is not None and pairs:
                pairs = [pairs[choose(len(pairs))]]
            for writer in (writer for pair in pairs for writer in pair):
                writer.transport.abort()
            return len(pairs)

        return self._do(cut())

    def hush(self, *, silent: bool) -> int:
        """Pass nothing on, or go on where it stopped; how many connections there are."""

        async def hush() -> int:
            (self._speaks.clear if silent else self._speaks.set)()
            return len(self._pairs)

        return self._do(hush())

    def _do(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._speaks.set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        pair = None
        with contextlib.suppress(OSError, asyncio.CancelledError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            pair = (writer, far_writer)
            self._pairs.append(pair)
            await asyncio.gather(self._carry(reader, far_writer), self._carry(far_reader, writer))
        if pair is not None:
            self._pairs.remove(pair)
        writer.transport.abort()
        self._tasks.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 14):
                await self._speaks.wait()
                writer.write(data)
                await writer.drain()
        writer.close()
