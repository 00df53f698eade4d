"""What all have in common that make class maps of a camera's newest frame, in a thread of their own.

Shapes: H height, W width.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_client.predict.newest import NewestFrame
from edge_client.predict.served import Served
from edge_client.recent import Seeing

log = logging.getLogger(__name__)

Some = TypeVar("Some", bound="NewestServed")


class NewestServed(ABC):
    """A context in which frames that are offered are served; its folder always holds a whole class map."""

    def __init__(self, folder: Path, alive: Callable[[], None]) -> None:
        """`folder` is made if it is missing; `alive` is called as long as the loop comes on.

        Raises:
            OSError: it can't be made.
        """
        self._frames = NewestFrame(alive)
        self._served = Served(folder)
        self._thread = threading.Thread(target=self._run, name="serving", daemon=True)

    def __enter__(self: Some) -> Some:
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
        """How fast class maps come; by the cloud, frames' ages are round trips."""
        return self._served.seeing()

    @property
    @abstractmethod
    def _by(self) -> str:
        """What serves, in words."""

    def __str__(self) -> str:
        return f"{self._served.pace}; {self.dropped} frames dropped; {self._by}"

    @abstractmethod
    def _run(self) -> None:
        """Serve until it is over; in a thread of its own."""
