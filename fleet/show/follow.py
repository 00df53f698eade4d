"""Following a run of other processes: the events of its log, handed to a recorder here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cloud_server.events import Recorder
from cloud_server.storage.recorders import LOG_NAME


class LogFollower:
    """Reads `log.jsonl` of a run folder from where it ends now, or from its start."""

    def __init__(self, run_folder: Path, recorder: Recorder, *, from_start: bool = False) -> None:
        self._path = run_folder / LOG_NAME
        self._offset = 0 if from_start or not self._path.exists() else self._path.stat().st_size
        self._recorder = recorder

    def update(self) -> None:
        """Hand on what has been logged since the last call."""
        for record in self._new_records():
            self._recorder.event(record.pop("event"), record)

    def _new_records(self) -> Iterator[dict[str, Any]]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        return  # still being written
                    self._offset += len(line)
                    try:
                        yield json.loads(line)
                    except json.JSONDecodeError:
                        continue  # the torn line of a killed process
        except FileNotFoundError:
            return
