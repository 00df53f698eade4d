"""What serving leaves: a folder that always holds a whole, newest class map, and how fast it comes.

Shapes: H height, W width.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_client.predict.latency import Pace
from edge_client.predict.newest import Taken
from edge_client.recent import Seeing
from evaluation.predictions import write_png
from protocol.atomic import write_json_atomic
from protocol.seldom import is_logged

log = logging.getLogger(__name__)

MAP_NAME = "classes.png"
"""The newest class map, 8-bit grey, with the ids of the label files."""
STATE_NAME = "serving.json"
"""When its frame came, how many there were and how fast."""
_REPORT_S = 60.0
_YOUNG_S = 2.0
"""What the model thought of a frame so long ago says little of what the camera sees now."""


class Served:
    """Class maps of one camera; written by one thread, looked at by others."""

    def __init__(self, folder: Path) -> None:
        """`folder` is made if it is missing.

        Raises:
            OSError: it can't be made.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.pace = Pace()
        self._unwritten = 0
        self._reported_s = time.monotonic()
        self._thought: tuple[float, float] | None = None
        """The newest frame's uncertainty, and when it was told."""

    def write(
        self,
        ids_HW: NDArray[np.uint8],
        taken: Taken,
        *,
        dropped: int,
        uncertainty: float | None,
        stage: int | None = None,
    ) -> None:
        """A class map is there, uint8 [H, W] of label ids; `uncertainty` of the whole frame, 0 to 1,
        `stage` of the network, see `ClassMap`.

        A disk that is full or gone is said, and ends nothing.
        """
        now = time.monotonic()
        if uncertainty is not None:
            self._thought = uncertainty, now
        try:
            write_png(self._folder / MAP_NAME, ids_HW)
            self.pace.note(taken.taken_s, time.monotonic())
            content = {
                "taken_at": taken.moment_s,
                "dropped": dropped,
                "uncertainty": uncertainty,
                "stage": stage,
                **self.pace.as_json(),
            }
            write_json_atomic(self._folder / STATE_NAME, content, sync=False)
        except OSError as error:
            self._unwritten += 1
            if is_logged(self._unwritten, first=3):
                log.warning("a class map can't be written: %s", error)

    def report(self, text: object) -> None:
        """Say so in the log, once a minute."""
        if time.monotonic() - self._reported_s > _REPORT_S:
            self._reported_s = time.monotonic()
            log.info("serving: %s", text)

    def uncertainty(self) -> float | None:
        """Of what the camera sees now, 0 to 1; None: nobody has said so in the last seconds."""
        thought = self._thought
        return None if thought is None or time.monotonic() - thought[1] > _YOUNG_S else thought[0]

    def seeing(self) -> Seeing:
        """How fast class maps come."""
        return self.pace.seeing()
