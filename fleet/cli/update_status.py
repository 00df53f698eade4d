"""What has become of a run's updates, by vehicle: read off its log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cloud_server.storage.recorders import LOG_NAME
from fleet.errors import OperatorError

_EVENT = "update"


def latest(run_folder: Path) -> list[dict[str, Any]]:
    """The newest event of each update and vehicle, in the order in which updates appeared.

    Raises:
        OperatorError: the folder holds no run.
        OSError: the log can't be read.
    """
    path = run_folder / LOG_NAME
    if not path.exists():
        raise OperatorError(f"{run_folder} holds no run: no {LOG_NAME}; give a run's folder")
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if f'"{_EVENT}"' not in line:
                continue
            try:
                event = json.loads(line)
            except ValueError:
                continue  # torn by a crash
            if event.get("event") == _EVENT:
                found[event.get("digest"), event.get("vehicle")] = event
    return list(found.values())


def lines(run_folder: Path) -> list[str]:
    """The same for people."""
    return [_line(event) for event in latest(run_folder)] or ["no update was offered in this run"]


def _line(event: dict[str, Any]) -> str:
    what = f"{event['kind']} {event['update']}, version {event['version']}" if "digest" in event else "a file"
    reason = f": {event['reason']}" if event.get("reason") else ""
    return f"{event.get('vehicle') or '-'}  {what}  {event['state']}{reason}"
