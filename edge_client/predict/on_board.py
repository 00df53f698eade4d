"""An exported model whole on board: the newest frame in, its class map out, in a thread of its own.

Shapes: H height, W width.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_client.predict.model import Model
from edge_client.predict.newest import NewestFrame
from edge_client.predict.served import Served
from edge_client.recent import Seeing

log = logging.getLogger(__name__)


class OnBoard:
    """A context in which frames that are offered are served; its folder always holds a whole class map."""

    def __init__(self, model: Model, folder: Path, *, alive: Callable[[], None] = lambda: None) -> None:
        """`folder` is made if it is missing; `alive` is called as long as the loop comes on.

        Raises:
            OSError: it can't be made.
        """
        self._model = model
        self._frames = NewestFrame(alive)
        self._served = Served(folder)
        self._thread = threading.Thread(target=self._serve, name="serving", daemon=True)

    def __enter__(self) -> OnBoard:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._frames.end()
        self._thread.join()
        log.info("served: %s", self)

    @property
    def served(self) -> int:
        """Frames whose class maps were written."""
        return self._served.pace.served

    @property
    def dropped(self) -> int:
        """Frames that a newer one has replaced before their turn came."""
        return self._frames.dropped

    def offer(self, image_HWC: NDArray[np.uint8]) -> None:
        """A picture has come, uint8 BGR [H, W, 3]; it is served unless a newer one comes before."""
        self._frames.offer(image_HWC)

    def uncertainty(self) -> float | None:
        """See `Served.uncertainty`."""
        return self._served.uncertainty()

    def seeing(self) -> Seeing:
        """How fast class maps come."""
        return self._served.seeing()

    def __str__(self) -> str:
        return f"{self._served.pace}; {self.dropped} frames dropped; on {self._model.provider}"

    def _serve(self) -> None:
        while (taken := self._frames.take()) is not None:
            rgb_HWC = np.ascontiguousarray(taken.image_HWC[:, :, ::-1])
            label_HW, uncertainty = self._model.predict_with_uncertainty(rgb_HWC)
            ids_HW = self._model.card.label_space.to_ids(label_HW)
            self._served.write(ids_HW, taken, dropped=self.dropped, uncertainty=uncertainty)
            self._served.report(self)
