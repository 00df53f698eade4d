"""A slow, late, breaking line before a TCP server, for benchmarks and tests of what happens behind one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Coroutine
from typing import Any

_LEAST_CHUNK_BYTES, _MOST_CHUNK_BYTES = 2048, 64 * 1024
_SOCKET_BYTES = 16 * 1024
"""Of the buffers on both sides of the line: what lies in them is lost with the line."""


class SlowLine:
    """`with SlowLine(port, bytes_per_s=10_000) as line:` clients connect to `line.port`.

    Each connection carries so much in each direction, apart from the others. Every `cut_s` all are reset.
    """

    def __init__(
        self,
        target_port: int,
        *,
        bytes_per_s: float | None = None,
        delay_s: float = 0.0,
        cut_s: float | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        """`delay_s` is added in each direction; None: no limit, no cuts."""
        self.port = 0
        self.cuts = 0
        """Connections that were reset."""
        self._target = host, target_port
        self._bytes_per_s = bytes_per_s
        chunk_bytes = _MOST_CHUNK_BYTES if bytes_per_s is None else int(bytes_per_s / 50)
        self._chunk_bytes = min(max(chunk_bytes, _LEAST_CHUNK_BYTES), _MOST_CHUNK_BYTES)
        self._delay_s = delay_s
        self._cut_s = cut_s
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="slow-line", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> SlowLine:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(self, *exception: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BYTES)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self._server = await asyncio.start_server(self._serve, sock=listener, limit=self._chunk_bytes)
        if self._cut_s is not None:
            self._start(self._cut_again(self._cut_s))

    async def _close(self) -> None:
        self._server.close()
        for task in [*self._tasks]:
            task.cancel()
        self._abort()
        await asyncio.sleep(0)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _abort(self) -> None:
        for writer in [*self._writers]:
            writer.transport.abort()
        self._writers.clear()

    async def _cut_again(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            self.cuts += len(self._writers) // 2
            self._abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target, limit=self._chunk_bytes)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, far_writer}
        self._writers |= both
        ways = [self._start(self._carry(reader, far_writer)), self._start(self._carry(far_reader, writer))]
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*ways)
        self._writers -= both

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction: read as slowly as the line is, pass on as late."""
        late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        passing = self._start(self._pass_on(late, writer))
        free_at = 0.0
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(self._chunk_bytes):
                free_at = max(free_at, self._loop.time())
                if self._bytes_per_s is not None:
                    free_at += len(data) / self._bytes_per_s
                    # A little ahead, as sleeping is not exact.
                    await asyncio.sleep(max(0.0, free_at - self._loop.time() - 0.005))
                late.put_nowait((free_at + self._delay_s, data))
        late.put_nowait((self._loop.time() + self._delay_s, b""))
        await passing

    async def _pass_on(self, late: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                due, data = await late.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                if not data:
                    break
                writer.write(data)
                await writer.drain()
        writer.close()
