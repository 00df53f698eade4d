"""Labels that are colours: which trainId each of them stands for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.frame import DatasetError
from datasets.labels import Rgb


class ColourTable:
    """Maps label colours to trainIds by search in the sorted 24-bit colour codes."""

    def __init__(self, train_id_by_colour: Mapping[Rgb, int], what: str) -> None:
        """`what` names the table in errors: pixels of no WHAT colour."""
        self.meanings = dict(train_id_by_colour)
        self._what = what
        codes = _codes(np.array(list(self.meanings), np.uint8))
        order = np.argsort(codes)
        self._sorted = codes[order]
        self._train_ids = np.array(list(self.meanings.values()), np.uint8)[order]

    def to_train_ids(self, colours_HWC: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
        """The trainIds, uint8 [H, W], of a picture of colours, RGB; `path` is for errors.

        Raises:
            DatasetError: a colour is not in the table.
        """
        code_HW = _codes(colours_HWC)
        index_HW = np.minimum(np.searchsorted(self._sorted, code_HW), len(self._sorted) - 1)
        unknown = self._sorted[index_HW] != code_HW
        if unknown.any():
            red, green, blue = colours_HWC[unknown][0]
            count = np.count_nonzero(unknown)
            raise DatasetError(
                f"{path}: {count} pixels of no {self._what} colour, such as ({red}, {green}, {blue})"
            )
        label_HW: NDArray[np.uint8] = self._train_ids[index_HW]
        return label_HW


def _codes(colours: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return red << 16 | green << 8 | blue, over the last axis."""
    red, green, blue = np.moveaxis(colours.astype(np.uint32), -1, 0)
    codes: NDArray[np.uint32] = (red << 16 | green << 8 | blue).astype(np.uint32, copy=False)
    return codes
