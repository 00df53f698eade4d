"""The server of a live page: a page, its events, pictures, and the buttons of whoever started the fleet.

The standard library's server is enough: a handful of readers, a thread each, and one way to change anything.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from fleet.errors import OperatorError
from fleet.run.controls import Controls, Refused
from fleet.watch.feed import LogStream
from fleet.watch.guard import LOOPBACK, TOKEN_HEADER, Guard
from fleet.watch.load import Load
from fleet.watch.pictures import Pictures
from fleet.watch.render import render_page
from protocol.errors import MENDABLE

log = logging.getLogger(__name__)

_MOST_READERS = 16
_MOST_PRESSED_BYTES = 4096
_SEND_S = 30.0
"""A reader that takes in nothing for so long is given up."""
_DRAIN_S = 3.0
"""What readers get at the end to take in the last events."""


class WatchServer:
    """Shows one run folder for as long as its context is open."""

    def __init__(
        self,
        run_folder: Path,
        *,
        host: str = LOOPBACK,
        port: int = 0,
        controls: Controls | None = None,
        title: str | None = None,
        has_frames: bool = True,
    ) -> None:
        """Listen at `host`; port 0 is any free one. `controls` gives the page buttons.

        `title`: what is shown; None: the folder's name. `has_frames`: whether it may hold vehicles' frames.

        Raises:
            OperatorError: that address can't be had.
        """
        self.run_folder = run_folder
        self._title = run_folder.resolve().name if title is None else title
        self._has_frames = has_frames
        self.controls = controls
        self.guard = Guard(host)
        self.pictures = Pictures(run_folder)
        self.closing = threading.Event()
        self.readers = threading.BoundedSemaphore(_MOST_READERS)
        try:
            self._http = _Http(self, host, port)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise OperatorError(
                f"can't show the run at {host}:{port} ({reason}); give another --port or --host"
            ) from error
        self.port = int(self._http.server_address[1])
        shown = f"[{self.guard.name}]" if ":" in self.guard.name else self.guard.name
        self.address = f"http://{shown}:{self.port}/?token={quote(self.guard.token)}"
        """What to open in a browser."""
        self._thread = threading.Thread(target=self._http.serve_forever, name="watch", daemon=True)

    def __enter__(self) -> WatchServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.drain(_DRAIN_S)
        self._http.server_close()
        self._thread.join()

    def page(self) -> tuple[str, str]:
        """The page and its policy."""
        settings = {
            "token": self.guard.page_token,
            "buttons": self.controls is not None,
            "live": True,
            "frames": self._has_frames,
        }
        return render_page(settings, title=self._title)


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, watch: WatchServer, host: str, port: int) -> None:
        self.watch = watch
        self._streams: set[threading.Thread] = set()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def stream(self, chunks: Iterable[bytes], send: Callable[[bytes], object]) -> None:
        """Send a reader its events in the thread of its request."""
        thread = threading.current_thread()
        self._streams.add(thread)
        try:
            for chunk in chunks:
                send(chunk)
        finally:
            self._streams.discard(thread)

    def drain(self, timeout_s: float) -> None:
        """Wait until readers have the last events, but not for long."""
        for thread in tuple(self._streams):
            thread.join(timeout_s)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that goes in the middle of an answer is nobody's fault."""
        log.debug("a reader of the live page has gone", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Http
    timeout = _SEND_S
    server_version, sys_version = "blackfleet", ""

    def do_GET(self) -> None:
        watch, url = self.server.watch, urlsplit(self.path)
        if not watch.guard.knows(self.headers.get("Host")):
            return self._refuse(HTTPStatus.FORBIDDEN, "this page does not go by that name")
        given = parse_qs(url.query).get("token", [None])[-1]
        if given is not None and watch.guard.is_token(given):
            return self._let_in()
        if not watch.guard.may_look(self.headers.get("Cookie"), watch.port):
            return self._refuse(
                HTTPStatus.FORBIDDEN, "open the address that blackfleet has printed: it holds a token"
            )
        parts = [unquote(part) for part in url.path.split("/") if part]
        match parts:
            case []:
                page, policy = watch.page()
                self._send(page.encode(), "text/html; charset=utf-8", policy=policy)
            case ["events"]:
                self._stream()
            case ["vehicles", vehicle, "frames"]:
                self._try(lambda: (json.dumps(watch.pictures.of(vehicle)).encode(), "application/json"))
            case ["vehicles", vehicle, key, kind]:
                self._try(lambda: (watch.pictures.draw(vehicle, key, kind), "image/jpeg"))
            case _:
                self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here")

    def do_POST(self) -> None:
        watch, headers = self.server.watch, self.headers
        allowed = watch.guard.may_press(
            headers.get("Origin"), headers.get("Host"), headers.get(TOKEN_HEADER)
        ) and watch.guard.may_look(headers.get("Cookie"), watch.port)
        if not allowed:
            return self._refuse(HTTPStatus.FORBIDDEN, "buttons work on the page alone")
        if self.path != "/press" or watch.controls is None:
            return self._refuse(HTTPStatus.NOT_FOUND, "this page has no buttons")
        try:
            length = int(headers.get("Content-Length", ""))
            if not 0 < length <= _MOST_PRESSED_BYTES:
                raise ValueError
            asked = json.loads(self.rfile.read(length))
            action, what = str(asked["action"]), str(asked.get("what", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            return self._refuse(HTTPStatus.BAD_REQUEST, "expected JSON with an action")
        try:
            watch.controls.press(action, what)
        except Refused as refused:
            return self._refuse(HTTPStatus.CONFLICT, str(refused))
        self._send(b"{}", "application/json")

    def _let_in(self) -> None:
        """Keep the token in a cookie and out of the address, which is seen and copied."""
        self.send_response(HTTPStatus.SEE_OTHER)
        self.send_header("Location", "/")
        self.send_header("Set-Cookie", self.server.watch.guard.cookie(self.server.watch.port))
        self.send_header("Content-Length", "0")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()

    def _stream(self) -> None:
        watch = self.server.watch
        if not watch.readers.acquire(blocking=False):
            return self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many pages show this run already")
        try:
            last = self.headers.get("Last-Event-ID", "")
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            load = Load(watch.run_folder, launcher=None if watch.controls is None else os.getpid())
            offset = int(last) if last.isdecimal() else 0
            stream = LogStream(watch.run_folder, watch.closing, offset=offset, load=load.look)
            self.server.stream(stream, self.wfile.write)
        finally:
            watch.readers.release()

    def _try(self, answer: Callable[[], tuple[bytes, str]]) -> None:
        try:
            content, kind = answer()
        except MENDABLE as error:
            return self._refuse(HTTPStatus.NOT_FOUND, str(error))
        self._send(content, kind)

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self._send(f"{reason}\n".encode(), "text/plain; charset=utf-8", status=status)

    def _send(
        self,
        content: bytes,
        kind: str,
        *,
        status: HTTPStatus = HTTPStatus.OK,
        policy: str = "default-src 'none'",
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", f"{policy}; frame-ancestors 'none'")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)
