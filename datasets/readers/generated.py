"""Generated frames among the data sets: they lie on disk as Cityscapes does, and are drawn where missing."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.entry import DatasetEntry
from datasets.labels import CITYSCAPES, LabelSpace
from datasets.readers import cityscapes
from datasets.readers.folder import FrameFolder

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


def _draw_when_read(root: Path, settings: GeneratorSettings) -> None:
    from datasets.generated import generate_dataset

    generate_dataset(root, settings, when_read=True)


def _open(root: Path, label_space: LabelSpace) -> FrameFolder:
    """Those that are there, or, where they are drawn when they are read, all."""
    if _are_drawn_when_read(root):
        from datasets.generated.on_demand import DrawnFrames

        return DrawnFrames(root, label_space)
    return cityscapes.CityscapesFrames(root, label_space)


def _are_drawn_when_read(root: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        said = json.loads((root / "generated.json").read_text(encoding="utf-8"))
        return isinstance(said, dict) and said.get("drawn_when_read") is True
    return False


ENTRY = DatasetEntry(
    name="generated",
    title="generated streets",
    label_space=CITYSCAPES,
    open=_open,
    ground_truth=cityscapes.CityscapesGroundTruth,
    splits=cityscapes.SPLITS,
    how_to_get="make driving frames with `blackfleet dataset generate {root}`",
    render=_draw,
    render_when_read=_draw_when_read,
)
