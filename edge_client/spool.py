"""What a vehicle without network has made for its turn, on disk until the turn is over.

Nothing here belongs to an attempt: a piece is kept under the digest of all that it follows from, so that
whoever does the same turn again, this process or the next, finds the very bytes that it would make. A piece
that is missing, cut off or damaged is made anew.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import msgspec

from protocol.atomic import write_bytes_atomic
from protocol.messages import Turn

log = logging.getLogger(__name__)

DEFAULT_SPOOL_MB = 1024
_DIGEST_BYTES = 16
_KEPT, _WAITING = ".kept", ".waiting"
"""Ends of names: what any attempt at the turn can use, and requests of one attempt."""


def digest(*parts: bytes) -> bytes:
    """Of these bytes, each with its length."""
    hashed = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        hashed.update(len(part).to_bytes(8, "big"))
        hashed.update(part)
    return hashed.digest()


class Spool:
    """The folder of one vehicle; there while something is in it."""

    def __init__(self, folder: Path, quota_bytes: int) -> None:
        self._folder = folder
        self._quota_bytes = quota_bytes
        self._turn = b""
        self._is_full = False
        self.bytes = 0
        """In it now."""
        self.pieces = 0

    def begin(self, turn: Turn, model: str) -> None:
        """An attempt at a turn begins, by what `model` names: what is of other turns or models goes, and
        requests of other attempts."""
        granted = msgspec.msgpack.encode(msgspec.structs.replace(turn, grant="0" * 8))
        self._turn = digest(granted, model.encode())
        own = self._turn.hex()
        self.bytes = self.pieces = 0
        self._is_full = False
        for path in self._files():
            if path.name.startswith(own) and path.suffix == _KEPT:
                self.bytes += path.stat().st_size
                self.pieces += 1
            else:
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """The turn is done."""
        for path in self._files():
            path.unlink(missing_ok=True)
        if self._folder.is_dir():
            self._folder.rmdir()
        self.bytes = self.pieces = 0

    def put(self, name: bytes, content: bytes, *, of_attempt: bool = False) -> bool:
        """Keep a piece of the turn; False where there is no room, which is logged once a turn."""
        path = self._path(name, of_attempt)
        before = path.stat().st_size if path.exists() else None
        size = _DIGEST_BYTES + len(content) - (before or 0)
        if self.bytes + size > self._quota_bytes:
            self._say_full(f"it may take {self._quota_bytes / 1e6:g} MB (--spool-mb)")
            return False
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_bytes_atomic(path, digest(content) + content)
        except OSError as error:
            self._say_full(error.strerror or str(error))
            return False
        self.bytes += size
        self.pieces += before is None
        return True

    def get(self, name: bytes, *, of_attempt: bool = False) -> bytes | None:
        """The content of a piece; None: it is not there, or no longer whole."""
        try:
            raw = self._path(name, of_attempt).read_bytes()
        except OSError:
            return None
        content = raw[_DIGEST_BYTES:]
        return content if digest(content) == raw[:_DIGEST_BYTES] else None

    def _path(self, name: bytes, of_attempt: bool) -> Path:
        end = _WAITING if of_attempt else _KEPT
        return self._folder / f"{self._turn.hex()}-{digest(name).hex()}{end}"

    def _files(self) -> list[Path]:
        return list(self._folder.iterdir()) if self._folder.is_dir() else []

    def _say_full(self, why: str) -> None:
        if not self._is_full:
            self._is_full = True
            log.warning(
                "%s has no room for more of this turn: %s; %d pieces, %.1f MB wait there, and the rest "
                "waits for the network",
                self._folder,
                why,
                self.pieces,
                self.bytes / 1e6,
            )
