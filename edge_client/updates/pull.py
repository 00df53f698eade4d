"""Updates from an HTTPS address, where the operator puts the same signed files that the cloud offers.

A thread of its own looks there now and then; the vehicle takes up what it has found when it is at rest.
"""

from __future__ import annotations

import logging
import ssl
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from protocol.errors import SettingError
from protocol.update_file import MOST_BYTES, digest_of

log = logging.getLogger(__name__)

LOOK_EVERY_S = 900.0
_TIMEOUT_S = 30.0
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Pulled:
    """A file that was fetched; nobody has looked at its signature yet."""

    path: Path
    digest: str
    """SHA-256 of it, hexadecimal."""


def check_update_url(url: str) -> None:
    """See that updates can be fetched from there.

    Raises:
        SettingError: it is no https:// address, or has a password in it.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise SettingError(f"an update URL must begin with https:// and name a host, got {url!r}")
    if parts.password is not None or parts.username is not None:
        raise SettingError("an update URL has no user and password: updates are signed, not secret")


class UpdatePull:
    """Fetches one file whenever it has changed, between `start` and `close`."""

    def __init__(
        self, url: str, folder: Path, context: ssl.SSLContext, *, every_s: float = LOOK_EVERY_S
    ) -> None:
        """What is fetched lies in `folder`, which is its own; `context` says which servers are trusted."""
        self._url = url
        self._folder = folder
        self._every_s = every_s
        # Redirections may only lead to where the file can be fetched by TLS, too.
        self._opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _OnlyHttps())
        self._tag: str | None = None
        self._said = ""
        self._newest: Pulled | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="updates", daemon=True)

    def __enter__(self) -> UpdatePull:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # A server that doesn't answer is not waited for; the next fetch begins the file anew.
        self._stop.set()

    def newest(self) -> Pulled | None:
        """What was fetched last; from any thread."""
        return self._newest

    def look(self) -> None:
        """Fetch the file if it isn't the one that is here."""
        headers = {} if self._tag is None else {"If-None-Match": self._tag}
        try:
            with self._opener.open(
                urllib.request.Request(self._url, headers=headers), timeout=_TIMEOUT_S
            ) as answer:
                self._fetch(answer)
                self._tag = answer.headers.get("ETag")
            self._said = ""
        except urllib.error.HTTPError as error:
            if error.code != 304:
                self._say(f"HTTP {error.code} {error.reason}")
        except (OSError, HTTPException, ValueError) as error:
            self._say(str(getattr(error, "reason", error)))

    def _fetch(self, answer: IO[bytes]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        begun, size_bytes = self._folder / "update.part", 0
        with begun.open("wb") as file:
            while piece := answer.read(_PIECE_BYTES):
                size_bytes += len(piece)
                if size_bytes > MOST_BYTES:
                    raise ValueError(f"more than {MOST_BYTES} bytes")
                if self._stop.is_set():
                    return
                file.write(piece)
        digest = digest_of(begun)
        if self._newest is not None and self._newest.digest == digest:
            begun.unlink()
            return
        path = self._folder / f"{digest}.bfu"
        begun.replace(path)
        self._newest = Pulled(path, digest)
        for other in self._folder.iterdir():
            if other != path:
                other.unlink()

    def _say(self, what: str) -> None:
        """Once, and not at each look."""
        if what != self._said:
            log.warning(
                "no update can be fetched from %s: %s; looking again every %g s",
                self._url,
                what,
                self._every_s,
            )
        self._said = what

    def _run(self) -> None:
        while True:
            self.look()
            if self._stop.wait(self._every_s):
                return


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme != "https":
            raise ValueError("it leads to an address without TLS")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
