"""A vehicle's look at all of its frames before it joins a fleet: faults are told at once, not in a turn."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection

from datasets.check import check_frames
from datasets.frame import FrameSource
from edge_client.conversation import Stopped

log = logging.getLogger(__name__)

_REPORT_S = 5.0
"""Between two lines about how far the check has come."""


def check_own_frames(
    source: FrameSource,
    keys: Collection[str],
    stop: threading.Event,
    *,
    threads: int,
    remember: bool = True,
) -> None:
    """Read the frames called `keys`, but, with `remember`, for those that were good the last time; unknown
    keys are left out.

    Raises:
        DatasetError: some are faulty; up to 10 are named.
        Stopped: the process was asked to stop.
    """
    wanted = frozenset(keys)
    refs = [ref for ref in source.refs if ref.key in wanted]
    reported_s = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal reported_s
        if stop.is_set():
            raise Stopped
        if time.monotonic() - reported_s > _REPORT_S:
            reported_s = time.monotonic()
            log.info("checked %d of %d frames", done, total)

    checked = check_frames(source, refs, remember=remember, workers=threads, progress=progress)
    labelled = [ref for ref in refs if ref.label_path is not None]
    if labelled and all(ref.key in checked.void for ref in labelled):
        log.warning(
            "all labels are void: none of the %d frames has a pixel of a %s class, so there is nothing to "
            "learn from them and no score",
            len(labelled),
            source.label_space.name,
        )
