"""Generated frames among the data sets: they lie on disk as Cityscapes does, and are drawn where missing."""

from __future__ import annotations

from datasets.entry import DatasetEntry
from datasets.generated.write import generate_dataset
from datasets.labels import CITYSCAPES
from datasets.readers import cityscapes

GENERATED = DatasetEntry(
    name="generated",
    title="generated streets",
    label_space=CITYSCAPES,
    open=cityscapes.CityscapesFrames,
    ground_truth=cityscapes.CityscapesGroundTruth,
    splits=cityscapes.SPLITS,
    how_to_get="make driving frames with `blackfleet dataset generate {root}`",
    render=generate_dataset,
)
