"""A data set cut down to some of its cities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from datasets.frame import DatasetError, Frame, FrameRef, FrameSource
from datasets.labels import LabelSpace
from datasets.natural import natural_key


class CitySubset:
    """The frames of some cities, read as in the whole data set; a `FrameSource` itself."""

    def __init__(self, source: FrameSource, cities: Sequence[str]) -> None:
        """`cities` are names as in `FrameRef.city`.

        Raises:
            DatasetError: the data set has no such city; the message lists those it has.
        """
        present = sorted({ref.city for ref in source.refs}, key=natural_key)
        for city in cities:
            if city not in present:
                raise DatasetError(f"the data set has no city {city!r}; it has: {', '.join(present)}")
        wanted = frozenset(cities)
        self._source = source
        self._refs = tuple(ref for ref in source.refs if ref.city in wanted)

    @property
    def label_space(self) -> LabelSpace:
        """See `FrameSource.label_space`."""
        return self._source.label_space

    @property
    def refs(self) -> tuple[FrameRef, ...]:
        """Every frame of these cities, sorted by key."""
        return self._refs

    def load(self, ref: FrameRef) -> Frame:
        """See `FrameSource.load`."""
        return self._source.load(ref)

    def load_image(self, ref: FrameRef) -> NDArray[np.uint8]:
        """See `FrameSource.load_image`."""
        return self._source.load_image(ref)

    def load_label(self, ref: FrameRef) -> NDArray[np.uint8]:
        """See `FrameSource.load_label`."""
        return self._source.load_label(ref)
