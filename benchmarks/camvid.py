"""Where benchmarks find CamVid, which is no part of the project."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "BLACKFLEET_CAMVID"


def camvid_folder() -> Path:
    """$BLACKFLEET_CAMVID, or `shared/data/camvid` beside the checkout.

    Raises:
        SystemExit: there is none; the message says what to set.
    """
    beside = Path(__file__).parents[2] / "shared" / "data" / "camvid"
    folder = Path(os.environ.get(VARIABLE, beside))
    if not folder.is_dir():
        raise SystemExit(f"no CamVid in {folder}: set {VARIABLE} to its folder, or give --data-root")
    return folder
