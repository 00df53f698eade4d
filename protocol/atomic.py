"""Files that are either the old version or the new one, never half of each."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any


def write_bytes_atomic(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write `data` to a temporary name beside `path`, then rename it over `path`.

    With `sync` the bytes and the folder entry are on the disk when this returns (fsync of both), so
    that a power cut can't undo an acknowledged step; without it only a crash of the process is covered.

    Raises:
        OSError: the folder is missing, unwritable or full; `path` keeps what it held.
    """
    written = _beside(path)
    try:
        # Who may read it is for the process's umask to say: a run's launcher keeps its files to their owner.
        with written.open("xb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        written.replace(path)
    except OSError as error:
        written.unlink(missing_ok=True)
        # Writing to a full disk doesn't say which file it was.
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        written.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


def new_folder_beside(folder: Path) -> Path:
    """A new, empty folder next to `folder`, to be filled and then renamed over it; the caller removes it.

    Raises:
        OSError: the folder around it is missing, unwritable or full.
    """
    made = _beside(folder)
    made.mkdir()
    return made


def write_json_atomic(path: Path, content: Any, *, sync: bool = True) -> None:
    """Write `content` as indented, strict JSON (a NaN is a ValueError), atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        data = text.encode()
    except UnicodeEncodeError:  # the name of a file that is no text
        data = (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
    write_bytes_atomic(path, data, sync=sync)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
