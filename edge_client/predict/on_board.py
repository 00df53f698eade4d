"""An exported model whole on board: the newest frame in, its class map out, in a thread of its own.

Shapes: H height, W width.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_client.predict.latency import Pace
from edge_client.predict.model import Model
from evaluation.predictions import write_png
from protocol.atomic import write_json_atomic
from protocol.seldom import is_logged

log = logging.getLogger(__name__)

MAP_NAME = "classes.png"
"""The newest class map, 8-bit grey, with the ids of the label files."""
STATE_NAME = "serving.json"
"""When its frame came, how many there were and how fast."""
_POLL_S = 0.2
_REPORT_S = 60.0


class OnBoard:
    """A context in which frames that are offered are served; its folder always holds a whole class map.

    Attributes:
        dropped: frames that a newer one has replaced before their turn came.
    """

    def __init__(self, model: Model, folder: Path, *, alive: Callable[[], None] = lambda: None) -> None:
        """`folder` is made if it is missing; `alive` is called as long as the loop comes on.

        Raises:
            OSError: it can't be made.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._model = model
        self._folder = folder
        self._condition = threading.Condition()
        self._newest: tuple[NDArray[np.uint8], float, float] | None = None
        self._stop = False
        self._alive = alive
        self._pace = Pace()
        self._unwritten = 0
        self.dropped = 0
        self._thread = threading.Thread(target=self._serve, name="serving", daemon=True)

    def __enter__(self) -> OnBoard:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join()
        log.info("served: %s", self)

    @property
    def served(self) -> int:
        """Frames whose class maps were written."""
        return self._pace.served

    def offer(self, image_HWC: NDArray[np.uint8]) -> None:
        """A picture has come, uint8 BGR [H, W, 3]; it is served unless a newer one comes before."""
        with self._condition:
            self.dropped += self._newest is not None
            self._newest = image_HWC, time.monotonic(), time.time()
            self._condition.notify()

    def __str__(self) -> str:
        return f"{self._pace}; {self.dropped} frames dropped; on {self._model.provider}"

    def _serve(self) -> None:
        reported_s = time.monotonic()
        while (taken := self._take()) is not None:
            image_HWC, taken_s, moment_s = taken
            rgb_HWC = np.ascontiguousarray(image_HWC[:, :, ::-1])
            ids_HW = self._model.card.label_space.to_ids(self._model.predict(rgb_HWC))
            try:
                write_png(self._folder / MAP_NAME, ids_HW)
                self._pace.note(taken_s, time.monotonic())
                content = {"taken_at": moment_s, "dropped": self.dropped, **self._pace.as_json()}
                write_json_atomic(self._folder / STATE_NAME, content, sync=False)
            except OSError as error:
                self._unwritten += 1
                if is_logged(self._unwritten, first=3):
                    log.warning("a class map can't be written: %s", error)
            if time.monotonic() - reported_s > _REPORT_S:
                reported_s = time.monotonic()
                log.info("serving: %s", self)

    def _take(self) -> tuple[NDArray[np.uint8], float, float] | None:
        """Wait for a picture; None: it is over."""
        with self._condition:
            self._alive()
            while self._newest is None:
                self._alive()
                if self._stop:
                    return None
                self._condition.wait(_POLL_S)
            taken, self._newest = self._newest, None
            return taken
