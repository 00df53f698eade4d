"""The catalog's entries: each says all that the product has to know of a data set."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.catalog import DATASETS, LABEL_SPACES, LABELLED, find_dataset, label_space, open_dataset
from datasets.entry import DatasetEntry
from datasets.frame import FrameRef
from datasets.labels import CAMVID, VOID, LabelClass, LabelSpace
from datasets.readers.folder import FrameFolder
from evaluation.errors import EvaluationError
from evaluation.ground_truth import open_ground_truth
from protocol.errors import SettingError

QUARRY = LabelSpace(
    "quarry",
    tuple(
        LabelClass(
            name=name,
            label_id=number,
            train_id=train_id,
            category=name,
            category_id=number,
            has_instances=False,
            ignore_in_eval=train_id == VOID,
            color_rgb=(number, number, number),
        )
        for number, (name, train_id) in enumerate((("nothing", VOID), ("gravel", 0), ("air", 1)))
    ),
)


class QuarryFrames(FrameFolder):
    """NAME.png beside NAME.ids.png."""

    def __init__(self, root: Path, classes: LabelSpace) -> None:
        labels = sorted(root.glob("*.ids.png"))
        stems = {path.name.removesuffix(".ids.png"): path for path in labels}
        refs = [FrameRef(stem, "q", "q", stem, root / f"{stem}.png", path) for stem, path in stems.items()]
        super().__init__(root, classes, refs)


@pytest.mark.parametrize("name", DATASETS)
def test_an_entry_says_what_it_is(name: str) -> None:
    entry = find_dataset(name)
    assert entry.name == name and entry.title and entry.how_to_get
    assert entry.is_labelled == (name in LABELLED)
    if entry.label_space is not None:
        assert label_space(entry.label_space.name) is entry.label_space
        assert entry.label_space.name in LABEL_SPACES


def test_only_generated_frames_are_rendered() -> None:
    assert [name for name, entry in DATASETS.items() if entry.render] == ["generated"]


def test_frames_without_labels_need_the_classes_of_a_network(tmp_path: Path) -> None:
    assert cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 6, 3), np.uint8))
    assert open_dataset("pictures", tmp_path, CAMVID).label_space is CAMVID
    with pytest.raises(SettingError, match="pictures has no classes of its own"):
        open_dataset("pictures", tmp_path)
    with pytest.raises(EvaluationError, match="data set pictures has no labels"):
        open_ground_truth(tmp_path, "pictures")


def test_the_ground_truth_of_an_entry_is_by_default_that_of_its_frames(tmp_path: Path) -> None:
    ids_HW = np.array([[0, 1, 2]] * 2, np.uint8)
    for stem in ("pit", "pit_2"):
        assert cv2.imwrite(str(tmp_path / f"{stem}.png"), np.zeros((2, 3, 3), np.uint8))
        assert cv2.imwrite(str(tmp_path / f"{stem}.ids.png"), ids_HW)
    entry = DatasetEntry(
        name="quarry", title="the quarry", label_space=QUARRY, open=QuarryFrames, how_to_get="dig"
    )
    truth = entry.open_ground_truth(tmp_path)
    assert truth.keys == {"pit", "pit_2"} and truth.label_space is QUARRY
    assert truth.key_of("pit_2_pred_labelIds") == "pit_2"
    assert truth.key_of("pit_3_pred_labelIds") == "pit"
    assert truth.key_of("hole_pred_labelIds") is None
    np.testing.assert_array_equal(truth.load("pit").ids_HW, ids_HW)
