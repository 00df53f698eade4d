"""Folders of the user who runs the process, where they are by custom (XDG base directories)."""

from __future__ import annotations

import os
from pathlib import Path

_NAME = "blackfleet"


def cache_folder() -> Path | None:
    """Where to keep what can be found out again: `$XDG_CACHE_HOME/blackfleet`, by default below `~/.cache`.

    It may not exist yet. None: this user has no home.
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    if named and Path(named).is_absolute():
        return Path(named) / _NAME
    try:
        return Path.home() / ".cache" / _NAME
    except RuntimeError:
        return None
