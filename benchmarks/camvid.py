"""Where benchmarks find CamVid, which is no part of the project."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "BLACKFLEET_CAMVID"


_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data" / "camvid"


def camvid_is_here() -> bool:
    """Whether `camvid_folder` finds one."""
    return _candidate().is_dir()


def _candidate() -> Path:
    return Path(os.environ.get(VARIABLE, _BESIDE))


def camvid_folder() -> Path:
    """$BLACKFLEET_CAMVID, or `shared/data/camvid` beside the checkout.

    Raises:
        SystemExit: there is none; the message says what to set.
    """
    folder = _candidate()
    if not folder.is_dir():
        raise SystemExit(f"no CamVid in {folder}: set {VARIABLE} to its folder, or give --data-root")
    return folder
