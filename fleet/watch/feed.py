"""A run's log as server-sent events: its lines as they stand there, in batches, and at the end the result.

The page folds them. Nothing is parsed here, so that looking at a run costs it next to nothing.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cloud_server.run.results import RESULT_NAME, RESULT_TOTALS
from cloud_server.storage.recorders import LOG_NAME

_POLL_S = 0.25
_BATCH_BYTES = 256 * 1024
_LOAD_S = 2.0
_IDLE_S = 10.0
"""After so long without news a comment is sent: that is how a reader who has gone is noticed."""
_SCORES = ("initial_local_miou", "local_miou", "ood_miou", "fleet_miou")
_COUNTS = ("queries", "uplink_bytes", "downlink_bytes", "rejects")


def final_event(run_folder: Path) -> dict[str, Any] | None:
    """What the page shows of `result.json`, as one more event after the log; None where there is none."""
    path = run_folder / RESULT_NAME
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        return {
            "event": "final",
            **{key: result.get(key) for key in (*RESULT_TOTALS, "wall_s", "dataset", "seed")},
            "vehicles": {name: _short(entry) for name, entry in result["vehicles"].items()},
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _short(entry: Mapping[str, Any]) -> dict[str, Any]:
    scores = {key: entry.get(key) for key in _SCORES}
    return {**scores, **{key: entry.get(key, 0) for key in _COUNTS}}


class LogStream:
    """The bytes of one reader's stream, from an offset in the log on."""

    def __init__(
        self,
        run_folder: Path,
        closing: threading.Event,
        *,
        offset: int = 0,
        load: Callable[[], dict[str, Any] | None] = lambda: None,
    ) -> None:
        """`closing` is set when the server goes: what is in the log by then is still sent.

        `load` is asked at intervals what the machine is busy with, while the run goes on.
        """
        self._folder = run_folder
        self._path = run_folder / LOG_NAME
        self._closing = closing
        self._offset = offset
        self._load = load

    def __iter__(self) -> Iterator[bytes]:
        """Events of the stream, until the run has a result or the server goes."""
        idle_s = load_s = 0.0
        while True:
            # Both are looked at before the log: what they follow is in it by now.
            has_result = (self._folder / RESULT_NAME).exists() and self._tells_result()
            ends = has_result or self._closing.is_set()
            for batch in self._batches():
                idle_s = 0.0
                yield batch
            if ends:
                break
            self._closing.wait(_POLL_S)
            idle_s += _POLL_S
            load_s += _POLL_S
            if load_s >= _LOAD_S:
                load_s = 0.0
                load = self._load()
                if load is not None:
                    yield event("load", json.dumps(load))
            if idle_s >= _IDLE_S:
                idle_s = 0.0
                yield b": waiting\n\n"
        final = final_event(self._folder)
        if final is not None:
            yield event("log", json.dumps(final))
        yield event("end", json.dumps({"complete": final is not None}))

    def _batches(self) -> Iterator[bytes]:
        """What the log has beyond the offset, whole lines only; the id of a batch is the offset after it."""
        try:
            with self._path.open("rb") as file:
                while True:
                    file.seek(self._offset)
                    chunk = file.read(_BATCH_BYTES)
                    # One line may be longer than a batch: that of a large fleet's vehicles.
                    chunk += b"" if chunk.endswith(b"\n") or len(chunk) < _BATCH_BYTES else file.readline()
                    lines = chunk[: chunk.rfind(b"\n") + 1]
                    if not lines:
                        return
                    self._offset += len(lines)
                    yield event("log", lines.decode("utf-8", "replace").rstrip("\n"), id_=str(self._offset))
        except FileNotFoundError:
            return

    def _tells_result(self) -> bool:
        """Whether the log says that the run is complete: that comes right after the result is written."""
        try:
            with self._path.open("rb") as file:
                file.seek(max(0, self._path.stat().st_size - _BATCH_BYTES))
                return b'"event": "result"' in file.read()
        except OSError:
            return True


def event(name: str, data: str, *, id_: str | None = None) -> bytes:
    """One server-sent event; lines of `data` become lines of it."""
    head = f"event: {name}\n" + (f"id: {id_}\n" if id_ is not None else "")
    return (head + "".join(f"data: {line}\n" for line in data.split("\n")) + "\n").encode()
