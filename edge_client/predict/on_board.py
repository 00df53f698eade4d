"""An exported model whole on board: the newest frame in, its class map out, in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from edge_client.predict.model import Model
from edge_client.predict.newest_served import NewestServed


class OnBoard(NewestServed):
    """Serves by a model on board."""

    def __init__(self, model: Model, folder: Path, *, alive: Callable[[], None] = lambda: None) -> None:
        """See `NewestServed`."""
        super().__init__(folder, alive)
        self._model = model

    @property
    def _by(self) -> str:
        return f"on {self._model.provider}"

    def _run(self) -> None:
        while (taken := self._frames.take()) is not None:
            rgb_HWC = np.ascontiguousarray(taken.image_HWC[:, :, ::-1])
            label_HW, uncertainty = self._model.predict_with_uncertainty(rgb_HWC)
            ids_HW = self._model.card.label_space.to_ids(label_HW)
            self._served.write(ids_HW, taken, dropped=self.dropped, uncertainty=uncertainty)
            self._served.report(self)
