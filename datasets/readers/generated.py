"""Generated frames among the data sets: they lie on disk as Cityscapes does, and are drawn where missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.entry import DatasetEntry
from datasets.labels import CITYSCAPES
from datasets.readers import cityscapes

if TYPE_CHECKING:
    from datasets.generated import GeneratorSettings


def _draw(
    root: Path,
    settings: GeneratorSettings,
    *,
    val_frames: int = 0,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """See `Renderer`; whoever only reads the frames loads nothing that draws them."""
    from datasets.generated import generate_dataset

    generate_dataset(root, settings, val_frames=val_frames, workers=workers, progress=progress)


ENTRY = DatasetEntry(
    name="generated",
    title="generated streets",
    label_space=CITYSCAPES,
    open=cityscapes.CityscapesFrames,
    ground_truth=cityscapes.CityscapesGroundTruth,
    splits=cityscapes.SPLITS,
    how_to_get="make driving frames with `blackfleet dataset generate {root}`",
    render=_draw,
)
