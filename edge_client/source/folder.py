"""A folder of pictures that somebody else fills: each is taken when whole, with its label if it has one.

What was taken is remembered beside the ring, so that neither a restart nor the ring's quota brings it back.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.frame import DatasetError
from datasets.label_files import LABEL_SUFFIX, label_beside
from datasets.labels import LabelSpace
from datasets.natural import natural_key
from datasets.readers.image_files import decode_ids, decode_rgb
from edge_client.source.ring import Ring
from protocol.atomic import write_json_atomic

log = logging.getLogger(__name__)

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
_SCAN_S = 1.0
_SETTLED_SCANS = 10
"""A picture that can't be read for as many scans, without growing, is faulty and not just unfinished."""


@dataclass
class _Taken:
    stamp: list[int]
    """Size in bytes and time of change in ns."""
    key: str | None
    """In the ring; None: it was faulty, or there was no room."""
    label_stamp: list[int] | None


class GrowingFolder:
    """Takes pictures from a folder and its subfolders into a ring.

    Attributes:
        taken, faulty: how many pictures, in this process's life.
    """

    def __init__(self, folder: Path, ring: Ring, label_space: LabelSpace, memory: Path) -> None:
        """`memory` is the file in which it is remembered what was taken."""
        self._folder = folder
        self._ring = ring
        self._label_space = label_space
        self._memory = memory
        self._known = _load(memory)
        self._tries: dict[str, tuple[list[int], int]] = {}
        self._is_gone = False
        self.taken = 0
        self.faulty = 0

    def watch(self, stop: threading.Event) -> Iterator[None]:
        """Look for new pictures once a second until `stop` is set; yields after each look.

        Raises:
            OSError: the ring's disk is full or gone; the next look tries again.
        """
        while not stop.is_set():
            self.scan(stop)
            yield
            stop.wait(_SCAN_S)

    def scan(self, stop: threading.Event) -> None:
        """Take what is new, in natural order of the names.

        Raises:
            OSError: see `watch`.
        """
        if not self._is_there():
            return
        before = json.dumps(self._as_json())
        try:
            pictures = [
                path
                for path in (*self._folder.glob("*"), *self._folder.glob("*/*"))
                if path.suffix.lower() in _SUFFIXES
                and not path.name.startswith(".")
                and not path.name.endswith(LABEL_SUFFIX)
            ]
            names = {str(path.relative_to(self._folder)): path for path in pictures}
            for name in sorted(names, key=natural_key):
                if stop.is_set():
                    return
                self._look_at(name, names[name])
            for gone in self._known.keys() - names.keys():
                del self._known[gone]
        finally:
            content = self._as_json()
            if json.dumps(content) != before:
                write_json_atomic(self._memory, content, sync=False)

    def _is_there(self) -> bool:
        """Whether there is such a folder; that it has gone, and that it is back, is said."""
        was_gone, self._is_gone = self._is_gone, not self._folder.is_dir()
        if self._is_gone and not was_gone:
            log.warning("%s is gone; nothing is recorded until it is back", self._folder)
        elif was_gone and not self._is_gone:
            log.info("%s is there again", self._folder)
        return not self._is_gone

    def _look_at(self, name: str, path: Path) -> None:
        stamp = _stamp(path)
        if stamp is None:
            return
        known = self._known.get(name)
        if known is None or known.stamp != stamp:
            known = self._take(name, path, stamp)
            if known is None:
                return
            self._known[name] = known
        label_path = label_beside(path)
        label_stamp = _stamp(label_path)
        if known.key is not None and label_stamp is not None and label_stamp != known.label_stamp:
            known.label_stamp = label_stamp
            self._take_label(known.key, path, label_path)

    def _take(self, name: str, path: Path, stamp: list[int]) -> _Taken | None:
        """Put a picture into the ring; None: it is not whole yet."""
        try:
            data = path.read_bytes()
            decode_rgb(path)
        except (DatasetError, OSError) as error:
            last_stamp, tries = self._tries.get(name, (stamp, 0))
            self._tries[name] = (stamp, tries + 1 if stamp == last_stamp else 1)
            if self._tries[name][1] < _SETTLED_SCANS:
                return None
            log.warning("left out: %s", error)
            self.faulty += 1
            return _Taken(stamp, None, None)
        finally:
            if _stamp(path) == stamp and name in self._tries and self._tries[name][1] >= _SETTLED_SCANS:
                del self._tries[name]
        key = self._ring.add(data, path.suffix.lower(), stamp[1] / 1e9)
        if key is None:
            log.warning("no room for %s: the quota is taken by the frames of the run", path)
        else:
            self.taken += 1
        return _Taken(stamp, key, None)

    def _take_label(self, key: str, path: Path, label_path: Path) -> None:
        try:
            data = label_path.read_bytes()
            label_HW = self._label_space.to_train_ids(np.asarray(decode_ids(label_path), np.uint8))
            if label_HW.shape != decode_rgb(path, labelled=True).shape[:2]:
                raise DatasetError(f"{label_path} is of another size than its picture")
        except (DatasetError, ValueError, OSError) as error:
            log.warning("label left out: %s: %s", label_path.name, error)
        else:
            self._ring.add_label(key, data)

    def _as_json(self) -> dict[str, Any]:
        return {name: [known.stamp, known.key, known.label_stamp] for name, known in self._known.items()}


def _stamp(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _load(memory: Path) -> dict[str, _Taken]:
    """Nothing where it is lost or damaged: then pictures are taken again, which costs time alone."""
    try:
        content = json.loads(memory.read_bytes())
        return {
            str(name): _Taken(list(stamp), key, label_stamp)
            for name, (stamp, key, label_stamp) in content.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
