"""A run's replay as one file that opens from disk: the live page with the whole log in it."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

from cloud_server.storage.recorders import LOG_NAME
from fleet.watch.feed import final_event
from fleet.watch.render import render_page
from protocol.atomic import write_bytes_atomic

REPLAY_NAME = "replay.html"
_MOST_BYTES = 64 * 2**20
"""Of a log that is put into a page; in it, it is about a tenth of that."""


def write_replay(run_folder: Path) -> Path | None:
    """Write `replay.html` into a run folder; None where there is no log, or one too large for a page.

    Raises:
        OSError: it can't be written.
    """
    try:
        log = (run_folder / LOG_NAME).read_bytes()
    except FileNotFoundError:
        return None
    if len(log) > _MOST_BYTES:
        return None
    final = final_event(run_folder)
    if final is not None:
        log = b"\n".join((log.rstrip(b"\n"), json.dumps(final).encode()))
    settings = {"live": False, "buttons": False, "pictures": _overlays(run_folder)}
    page, _ = render_page(settings, title=run_folder.resolve().name, log=log)
    path = run_folder / REPLAY_NAME
    write_bytes_atomic(path, page.encode())
    return path


def _overlays(run_folder: Path) -> dict[str, list[tuple[str, str]]]:
    """By vehicle: (address relative to the run folder, frame key) of each overlay."""
    shown: dict[str, list[tuple[str, str]]] = {}
    for path in sorted((run_folder / "overlays").glob("*/*.png")):
        address = quote(str(path.relative_to(run_folder)))
        shown.setdefault(path.parent.name, []).append((address, path.stem))
    return shown
