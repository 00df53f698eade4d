"""Moves bytes between the socket of a network client and the client, on the network loop's thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from protocol.mqtt.network_loop import NetworkLoop


class PumpedClient(Protocol):
    """What a library's client offers to whoever waits on its socket."""

    on_socket_close: Any

    def socket(self) -> Any: ...

    def want_write(self) -> bool: ...

    def loop_read(self) -> object: ...

    def loop_write(self) -> object: ...


class SocketPump:
    """Reads when there is something to read, writes when there is something to write and room for it."""

    def __init__(self, client: PumpedClient, loop: NetworkLoop, *, on_nonsense: Callable[[], None]) -> None:
        """`on_nonsense` is called while the exception is handled that unexpected bytes have caused."""
        self._client = client
        self._loop = loop
        self._on_nonsense = on_nonsense
        self._fd: int | None = None
        self._write_registered = False
        self._flush_due = False
        client.on_socket_close = self._forget

    def watch(self, sock: Any) -> None:
        """Attend to a new connection's socket, until the client closes it."""
        fd: int = sock.fileno()
        self._fd = fd
        self._loop.events.add_reader(fd, self._read)

    def flush_soon(self) -> None:
        """From any thread, under its owner's lock: write what the client has got to send."""
        if not self._flush_due:
            self._flush_due = True
            self._loop.call(self.flush)

    def flush(self) -> None:
        """Write what the client has got to send, and come back for what the socket doesn't take now."""
        self._flush_due = False
        if self._fd is None:
            return
        if self._client.want_write():
            self._move(self._client.loop_write)
        if self._fd is None:
            return
        blocked = self._client.want_write()
        if blocked and not self._write_registered:
            self._loop.events.add_writer(self._fd, self.flush)
        elif self._write_registered and not blocked:
            self._loop.events.remove_writer(self._fd)
        self._write_registered = blocked

    def _read(self) -> None:
        self._move(self._client.loop_read)
        # TLS may hold decrypted bytes that the selector can't see.
        while (sock := self._client.socket()) is not None and getattr(sock, "pending", int)() > 0:
            self._move(self._client.loop_read)
        self.flush()

    def _move(self, move_bytes: Callable[[], object]) -> None:
        try:
            move_bytes()
        except Exception:  # the library's answer to some malformed packets
            self._on_nonsense()

    def _forget(self, _client: object, _data: object, _sock: object) -> None:
        if self._fd is not None:
            self._loop.events.remove_reader(self._fd)
            self._loop.events.remove_writer(self._fd)
            self._fd, self._write_registered = None, False
