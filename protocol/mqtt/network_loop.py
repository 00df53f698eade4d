"""One thread that waits on the sockets of many network clients, and a few helpers for what blocks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_HELPERS = 4
_MANY_CLIENTS, _MOST_SELDOM = 100, 12.0


class NetworkLoop:
    """An event loop on a thread of its own, started by the first call; shared by the clients of a process."""

    def __init__(self, clients: int = 1) -> None:
        """`clients`: about how many it will serve."""
        self._seldom = min(_MOST_SELDOM, max(1.0, clients / _MANY_CLIENTS))
        self._lock = threading.Lock()
        self._events: asyncio.SelectorEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._helpers = ThreadPoolExecutor(_HELPERS, thread_name_prefix="network-helper")
        self._closed = False

    def __enter__(self) -> NetworkLoop:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def at_leisure(self, seconds: float) -> float:
        """How often a client does what a single one does every so many seconds: of very many each more
        seldom, lest those that wait keep the thread busy."""
        return seconds * self._seldom

    @property
    def in_thread(self) -> bool:
        """Whether the caller runs on the loop's thread."""
        return self._thread is threading.current_thread()

    @property
    def events(self) -> asyncio.SelectorEventLoop:
        """The event loop, for callers on its thread."""
        assert self._events is not None
        return self._events

    def call(self, callback: Callable[[], object]) -> bool:
        """From any thread: run `callback` on the loop's thread soon; False once the loop is closed."""
        with self._lock:
            if self._closed:
                return False
            if self._events is None:
                self._events = asyncio.SelectorEventLoop()
                self._thread = threading.Thread(target=self._events.run_forever, name="network", daemon=True)
                self._thread.start()
            self._events.call_soon_threadsafe(callback)
            return True

    def call_blocking(
        self, function: Callable[[], object], done: Callable[[BaseException | None], None]
    ) -> None:
        """From the loop's thread: run `function` on a helper thread, then `done` here with what it raised."""
        future = self.events.run_in_executor(self._helpers, function)
        future.add_done_callback(lambda ended: None if ended.cancelled() else done(ended.exception()))

    def close(self) -> None:
        """Stop the thread; close the clients before. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._helpers.shutdown(wait=False, cancel_futures=True)
        if self._events is not None and self._thread is not None:
            self._events.call_soon_threadsafe(self._events.stop)
            self._thread.join()
            self._events.close()
