"""Where the virtual time of an interrupted run goes on."""

from __future__ import annotations

import json
from pathlib import Path

from cloud_server.storage.recorders import LOG_NAME


def committed_at_s(run_folder: Path) -> float:
    """The virtual time of the latest commit in a run's log, seconds; 0 where there is none.

    Raises:
        OSError: the log can't be read.
    """
    latest_s = 0.0
    path = run_folder / LOG_NAME
    if not path.exists():
        return latest_s
    with path.open("rb") as file:
        for line in file:
            if b'"committed"' not in line:
                continue
            try:
                latest_s = max(latest_s, float(json.loads(line).get("virtual_s", 0.0)))
            except ValueError:
                continue  # torn by a crash
    return latest_s
