"""What an MQTT library leaves to do on its sockets."""

from __future__ import annotations

import contextlib
import os
import socket
from enum import Enum
from typing import Any

State = Enum("State", "IDLE CONNECTING OPEN WAITING")
"""Of a client's connection; WAITING: until it is tried again."""


def prepare_socket(sock: Any) -> None:
    """Turn off Nagle's algorithm, with which a small round trip takes 44 ms; mend paho's WebSocket."""
    with contextlib.suppress(OSError), _second_handle(sock) as tcp:
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if isinstance(sock, socket.socket):
        return
    # paho's WebSocket returns 0 for a frame sent in part, at which paho forgets the packet. Told that
    # the socket is busy, it comes back with the same packet, and the frame goes on where it stopped.
    send = sock.send

    def send_or_block(data: bytes) -> int:
        sent: int = send(data)
        if sent == 0 and data:
            raise BlockingIOError
        return sent

    sock.send = send_or_block


def cut(sock: Any) -> None:
    """End the connection as a pulled cable would, whatever protocol runs on it; the next read finds out."""
    with contextlib.suppress(OSError), _second_handle(sock) as tcp:
        tcp.shutdown(socket.SHUT_RDWR)


def describe_problem(problem: BaseException | None) -> str:
    """Why a connection could not be made, in a few words."""
    if problem is None:
        return "connection closed"
    if isinstance(problem, TimeoutError):
        return "connection timed out"
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror.lower()
    return " ".join(str(problem).split()) or type(problem).__name__


def _second_handle(sock: Any) -> socket.socket:
    """Another handle on the TCP connection below TLS or WebSocket."""
    return socket.socket(fileno=os.dup(sock.fileno()))
