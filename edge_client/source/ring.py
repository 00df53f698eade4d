"""Frames on disk up to a quota, the oldest first to go; each names its place, time and content.

`drive-0003_000012_20260102T030405.678Z_0123456789abcdef.jpg`: the 12th frame of the third time that somebody
recorded, when it was taken by the machine's clock, and the start of the SHA-256 of its bytes. Order is by the
numbers, which no clock can set back. A label lies beside it, `…_labelIds.png`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from datasets.label_files import label_beside
from edge_client.errors import VehicleError
from protocol.atomic import write_bytes_atomic

DIGEST_DIGITS = 16
_NAME = re.compile(r"(drive-(\d{4,}))_((\d{6,})_[0-9T.]+Z_([0-9a-f]{16}))\.(?:jpg|jpeg|png)")


def digest(data: bytes) -> str:
    """What a frame's name says of its content: the first 64 bits of SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()[:DIGEST_DIGITS]


@dataclass(frozen=True, slots=True, order=True)
class RingFrame:
    """One frame on disk; sorted as they were taken."""

    drive: int
    number: int
    path: Path
    size_bytes: int
    digest: str

    @property
    def key(self) -> str:
        """Its name in everything that follows."""
        return self.path.stem

    @property
    def label_path(self) -> Path:
        """Where its label lies, if it has one."""
        return label_beside(self.path)

    @property
    def has_label(self) -> bool:
        """Whether it has one now."""
        return self.label_path.is_file()


class Ring:
    """The frames of one vehicle; used by the thread that records and the one that takes snapshots."""

    def __init__(self, folder: Path, quota_bytes: int) -> None:
        """Open the folder, making it if it is missing; it stays this process's until `close`.

        Raises:
            VehicleError: another process records into it.
            OSError: it can't be made or read.
        """
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        self.folder = folder
        self._lock_file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock_file)
            raise VehicleError(
                f"another process records into {folder}; stop it, or give this vehicle a folder of its own "
                f"(--recording)"
            ) from None
        self._quota_bytes = quota_bytes
        self._lock = threading.Lock()
        self._pinned: frozenset[str] = frozenset()
        for left_over in folder.glob(".*.tmp"):  # by a process that was killed while it wrote
            left_over.unlink(missing_ok=True)
        self._frames = {frame.key: frame for frame in sorted(_frames_in(folder))}
        self._digests = {frame.digest: frame.key for frame in self._frames.values()}
        self._drive = 1 + max((frame.drive for frame in self._frames.values()), default=0)
        self._number = 0

    def close(self) -> None:
        """Let others record into the folder."""
        os.close(self._lock_file)

    @property
    def frames(self) -> list[RingFrame]:
        """All of them, oldest first."""
        with self._lock:
            return list(self._frames.values())

    @property
    def size_bytes(self) -> int:
        """What they take on the disk, labels left out."""
        return sum(frame.size_bytes for frame in self.frames)

    def pin(self, keys: Iterable[str]) -> None:
        """From now on these frames stay, whatever the quota says, and no others have to."""
        with self._lock:
            self._pinned = frozenset(keys)

    def add(self, data: bytes, suffix: str, taken_at_s: float) -> str | None:
        """Keep a frame; its key, or that of the frame that had the same content already.

        Args:
            data: a JPEG or PNG file.
            suffix: `.jpg`, `.jpeg` or `.png`.
            taken_at_s: seconds since 1970 by the machine's clock, for people to read.

        Returns:
            None where there is no room: what the quota allows is pinned.

        Raises:
            OSError: the disk is full or gone; nothing has changed but that older frames may be gone.
        """
        name = digest(data)
        with self._lock:
            if name in self._digests:
                return self._digests[name]
            if not self._make_room(len(data)):
                return None
            moment = datetime.fromtimestamp(taken_at_s, tz=timezone.utc)
            time_text = f"{moment:%Y%m%dT%H%M%S}.{moment.microsecond // 1000:03d}Z"
            key = f"drive-{self._drive:04d}_{self._number + 1:06d}_{time_text}_{name}"
            path = self.folder / f"{key}{suffix}"
            # Not synced: what a run works on is, when the snapshot is made.
            write_bytes_atomic(path, data, sync=False)
            self._number += 1
            self._frames[key] = RingFrame(self._drive, self._number, path, len(data), name)
            self._digests[name] = key
            return key

    def add_label(self, key: str, data: bytes) -> None:
        """Put a label beside a frame, if that is still there.

        Raises:
            OSError: the disk is full or gone.
        """
        with self._lock:
            if key in self._frames and key not in self._pinned:
                write_bytes_atomic(self._frames[key].label_path, data, sync=False)

    def forget(self, key: str) -> None:
        """Remove a frame that turned out to be damaged."""
        with self._lock:
            self._remove(key)

    def _make_room(self, size_bytes: int) -> bool:
        held = sum(frame.size_bytes for frame in self._frames.values())
        loose = [frame for key, frame in self._frames.items() if key not in self._pinned]
        if held - sum(frame.size_bytes for frame in loose) + size_bytes > self._quota_bytes:
            return False
        for frame in loose:
            if held + size_bytes <= self._quota_bytes:
                break
            self._remove(frame.key)
            held -= frame.size_bytes
        return True

    def _remove(self, key: str) -> None:
        frame = self._frames.pop(key, None)
        if frame is not None:
            self._digests.pop(frame.digest, None)
            frame.path.unlink(missing_ok=True)
            frame.label_path.unlink(missing_ok=True)


def _frames_in(folder: Path) -> Iterable[RingFrame]:
    for path in folder.iterdir():
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        size_bytes = path.stat().st_size
        if size_bytes == 0:  # a power cut came between its name and its bytes
            path.unlink()
            continue
        yield RingFrame(int(match[2]), int(match[4]), path, size_bytes, match[5])


def place_of(name: str) -> tuple[str, str] | None:
    """Drive and the rest of a frame's file name; None: it is none of a ring."""
    match = _NAME.fullmatch(name)
    return None if match is None else (match[1], match[3])
