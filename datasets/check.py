"""Reads frames before anything relies on them, and remembers by size and time which files were good.

What is remembered lies in the user's cache folder, never beside the data; a file of it that is lost, foreign
or damaged costs time and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.frame import DatasetError, FrameRef, FrameSource
from datasets.labels import VOID
from datasets.readers.folder import raise_faults
from protocol.atomic import write_json_atomic
from protocol.user_folders import cache_folder

log = logging.getLogger(__name__)

_VERSION = 1
"""Counts changes of what is checked; what older versions remember does not count."""
_FOLDER = "checked-frames"
_MOST_FILES = 64
"""Data sets remembered; those not looked at for the longest time are forgotten."""
_FRAMES_AT_ONCE = 8
"""Frames that each thread has before it, so that a signal is heard soon."""

Progress = Callable[[int, int], None]
Stamps = list[list[int]]
"""[size in bytes, time of change in ns] of a frame's files: picture, label, instances."""


@dataclass(frozen=True, slots=True)
class CheckedFrames:
    """What reading the frames has shown; that all are readable, too."""

    void: frozenset[str]
    """Keys of those whose label has no pixel of any class, or that have no label."""


def check_frames(
    source: FrameSource,
    refs: Sequence[FrameRef] | None = None,
    *,
    remember: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> CheckedFrames:
    """Read every file of `refs` (default: all of the source) that is not known to be good.

    Args:
        source: what reads them.
        refs: some of its frames.
        remember: keep what was found for the next time, and use what is known from the last.
        workers: threads.
        progress: called with (frames done, frames in all) as they are read; what it raises ends the check.

    Raises:
        DatasetError: some are faulty; the message names up to 10 and says how many there are.
    """
    refs = source.refs if refs is None else refs
    memory = _Memory(_memory_path(source) if remember else None)
    stamps = [_stamps(ref) for ref in refs]
    unknown = [
        (ref, stamp) for ref, stamp in zip(refs, stamps, strict=True) if not memory.knows(ref.key, stamp)
    ]
    done = len(refs) - len(unknown)
    faults: list[str] = []
    try:
        with ThreadPoolExecutor(workers) as pool:
            for start in range(0, len(unknown), workers * _FRAMES_AT_ONCE):
                part = unknown[start : start + workers * _FRAMES_AT_ONCE]
                for (ref, stamp), found in zip(
                    part, pool.map(lambda pair: _read(source, pair[0]), part), strict=True
                ):
                    if isinstance(found, str):
                        faults.append(found)
                    else:
                        memory.put(ref.key, stamp, void=found)
                    done += 1
                if progress:
                    progress(done, len(refs))
    finally:
        memory.save()
    raise_faults(f"{source.label_space.name} frames", faults)
    return CheckedFrames(frozenset(ref.key for ref in refs if memory.is_void(ref.key)))


def _read(source: FrameSource, ref: FrameRef) -> bool | str:
    """Whether the frame's label is all void; what is wrong with the frame, if anything is."""
    try:
        return bool((source.load(ref).label_HW == VOID).all())
    except DatasetError as error:
        return str(error)


def _stamps(ref: FrameRef) -> Stamps | None:
    """None: a file can't be looked at."""
    try:
        found = [path.stat() for path in (ref.image_path, ref.label_path, ref.instance_path) if path]
    except OSError:
        return None
    return [[status.st_size, status.st_mtime_ns] for status in found]


class _Memory:
    """What is known of frames by key, in one JSON file for each data set."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._frames: dict[str, dict[str, Any]] = _load(path) if path else {}
        self._changed = False

    def knows(self, key: str, stamps: Stamps | None) -> bool:
        return stamps is not None and self._frames.get(key, {}).get("files") == stamps

    def put(self, key: str, stamps: Stamps | None, *, void: bool) -> None:
        self._frames[key] = {"files": stamps, "void": void}
        self._changed = True

    def is_void(self, key: str) -> bool:
        return bool(self._frames[key]["void"])

    def save(self) -> None:
        if self._path is None or not self._changed:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomic(self._path, {"version": _VERSION, "frames": self._frames}, sync=False)
            files = sorted(self._path.parent.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
            for old in files[:-_MOST_FILES]:
                old.unlink(missing_ok=True)
        except OSError as error:
            log.debug("what was checked is not remembered: %s", error)


def _load(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(path.read_bytes())
        if content["version"] != _VERSION:
            return {}
        return {
            key: {"files": entry["files"], "void": bool(entry["void"])}
            for key, entry in content["frames"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _memory_path(source: FrameSource) -> Path | None:
    """By place and by what decides how files there are read."""
    folder = cache_folder()
    if folder is None or not source.refs:
        return None
    place = os.path.commonpath([ref.image_path.parent.absolute() for ref in source.refs])
    reader = f"{type(source).__module__}.{type(source).__qualname__}"
    classes = [(c.name, c.label_id, c.train_id) for c in source.label_space.classes]
    identity = json.dumps([place, reader, classes, getattr(source, "colours", None)])
    return folder / _FOLDER / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"
