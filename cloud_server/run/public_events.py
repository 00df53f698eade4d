"""What happens in the run, told on the bus for whoever may look on.

Each event is told once as it happens, and what still matters of all of them again at every heartbeat: for
who comes late, or has missed something. A thread of its own does it; the run waits for nothing here, and what
the network has no room for is left out.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cloud_server.events import Recorder
from cloud_server.storage.recorders import LOG_NAME
from protocol.codec.lines import encode_lines
from protocol.messages import Happened, Past
from protocol.session.link import CloudLink
from protocol.session.topics import CLOUD_ID

log = logging.getLogger(__name__)

_FLUSH_S = 0.5
_MOST_PENDING = 2000
"""Lines that wait for the next flush; beyond, who looks on learns of them from the past."""
_MOST_KEPT, _MOST_KEPT_OF_A_VEHICLE = 4000, 32
_MOST_READ_BYTES = 64 * 1024 * 1024
_GROUP = 500
"""Lines of a message at most."""
_MOST_TRIES = 20
_BYTES_A_SECOND = 16 * 1024
"""The past of a large fleet is told more seldom than at each heartbeat, so as to take no more than this."""
_MESSAGE_BYTES = 16 * 1024
"""Of several lines together, lest answers wait behind them on a slow line."""
_HEAD_BYTES = 128
_NUMBER_BYTES = 9
_OF_THE_LAUNCHER = frozenset(("processes", "killed", "revived", "crashed", "paused", "resumed", "stopped"))
"""Stand in the log, too; whoever looks on over the network can't operate anything."""
_Line = tuple[int, str]


class PublicEvents(Recorder):
    """Tells events over the cloud's link while its context is open."""

    def __init__(
        self,
        link: CloudLink,
        session: str,
        *,
        vehicles: int,
        every_s: float,
        may_tell: Callable[[], bool],
    ) -> None:
        """What still matters is told `every_s`; nothing is before `may_tell` says so."""
        self._link = link
        self._session = session
        self._every_s = every_s
        self._may_tell = may_tell
        self._most_kept = _MOST_KEPT + _MOST_KEPT_OF_A_VEHICLE * vehicles
        self._lock = threading.Lock()
        self._next = 0
        self._pending: list[str] = []
        self._kept: dict[tuple[Any, ...], _Line] = {}
        """The latest of each kind, vehicle and stage's kind, in the order of their numbers."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="public-events", daemon=True)

    def remember(self, run_folder: Path) -> None:
        """Know what an earlier process of this run has written into the log.

        Raises:
            OSError: the log can't be read.
        """
        path = run_folder / LOG_NAME
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _MOST_READ_BYTES))
            for line in file:
                try:
                    event = json.loads(line)
                    if event["event"] not in _OF_THE_LAUNCHER:
                        self._keep(event, line.decode().strip())
                except (ValueError, KeyError, TypeError):
                    continue  # torn by a crash

    def __enter__(self) -> PublicEvents:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self.tell_pending()

    def event(self, name: str, values: Mapping[str, Any]) -> None:
        event = {"event": name, "time": round(time.time(), 3), **values}
        line = json.dumps(event, allow_nan=False)
        with self._lock:
            self._keep(event, line)
            if len(self._pending) < _MOST_PENDING:
                self._pending.append(line)

    def tell_pending(self) -> None:
        """Tell what has happened since the last time."""
        if not self._may_tell():
            return
        with self._lock:
            lines, self._pending = self._pending, []
            first = self._next - len(lines)
        if len(lines) >= _MOST_PENDING:
            return  # some were left out; the past has them
        numbered = [(first + place, line) for place, line in enumerate(lines)]
        for group, plain_bytes, data in _groups(numbered, self._link.tell_limit_bytes):
            told = Happened(
                vehicle=CLOUD_ID,
                session=self._session,
                first=group[0][0],
                plain_bytes=plain_bytes,
                lines=data,
            )
            self._link.tell(told)

    def tell_past(self) -> int:
        """Tell all that still matters, part by part as there is room; returns its bytes."""
        with self._lock:
            kept, upto = list(self._kept.values()), self._next
        groups = list(_groups(kept, self._link.tell_limit_bytes))
        for part, (group, plain_bytes, data) in enumerate(groups):
            told = Past(
                vehicle=CLOUD_ID,
                session=self._session,
                upto=upto,
                part=part,
                parts=len(groups),
                numbers=tuple(number for number, _ in group),
                plain_bytes=plain_bytes,
                lines=data,
            )
            tries = 0
            while not self._link.tell(told):
                tries += 1
                if tries == _MOST_TRIES or self._stop.wait(_FLUSH_S):
                    return 0  # it begins anew, with what has happened by then
        return sum(len(data) for _, _, data in groups)

    def _keep(self, event: Mapping[str, Any], line: str) -> None:
        """Number a line and put it in the place of the one that it supersedes."""
        name = event["event"]
        stage = event.get("stage") if name == "curve" else None
        key = (name, event.get("vehicle"), event.get("kind"), event.get("split"), stage)
        self._kept.pop(key, None)
        self._kept[key] = (self._next, line)
        self._next += 1
        if len(self._kept) > self._most_kept:
            oldest = next(key for key in self._kept if key[0] != "run")
            del self._kept[oldest]

    def _run(self) -> None:
        due_at = float("-inf")
        while not self._stop.wait(_FLUSH_S):
            self.tell_pending()
            if self._may_tell() and self._link.clock.now() >= due_at:
                took_s = self.tell_past() / _BYTES_A_SECOND
                due_at = self._link.clock.now() + max(self._every_s, took_s)


def _groups(lines: Sequence[_Line], limit_bytes: int) -> Iterator[tuple[Sequence[_Line], int, bytes]]:
    """Consecutive lines that fit into a message of `limit_bytes` with their numbers, and their encoding."""
    for start in range(0, len(lines), _GROUP):
        yield from _halved(lines[start : start + _GROUP], limit_bytes - _HEAD_BYTES)


def _halved(lines: Sequence[_Line], room_bytes: int) -> Iterator[tuple[Sequence[_Line], int, bytes]]:
    plain_bytes, data = encode_lines([line for _, line in lines])
    size_bytes = len(data) + _NUMBER_BYTES * len(lines)
    if size_bytes <= min(room_bytes, _MESSAGE_BYTES) or len(lines) == 1:
        if size_bytes <= room_bytes:
            yield lines, plain_bytes, data
        else:
            log.debug("event %d of %d bytes is too large to be told", lines[0][0], plain_bytes)
    else:
        half = len(lines) // 2
        yield from _halved(lines[:half], room_bytes)
        yield from _halved(lines[half:], room_bytes)
