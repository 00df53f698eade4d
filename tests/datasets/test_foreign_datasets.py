"""Data sets of somebody else's with classes of their own, by `package.module:name`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.catalog import find_dataset, label_space, open_dataset
from datasets.labels import CITYSCAPES, LabelSpace
from datasets.readers.folder import DatasetMissing
from evaluation.scores import ConfusionMatrix
from fleet.scenario import load_scenario
from protocol.doors import DoorError
from protocol.errors import Mistake, SettingError

MODULE = """
from dataclasses import replace

from datasets.entry import DatasetEntry
from datasets.frame import FrameRef
from datasets.labels import CITYSCAPES, VOID, LabelClass, LabelSpace
from datasets.readers.folder import DatasetMissing, FrameFolder

def label(name, label_id, train_id, color_rgb):
    return LabelClass(
        name=name, label_id=label_id, train_id=train_id, category=name, category_id=label_id,
        has_instances=False, ignore_in_eval=train_id == VOID, color_rgb=color_rgb,
    )

YARD = LabelSpace("yard", (
    label("nothing", 9, VOID, (0, 0, 0)),
    label("ground", 1, 0, (90, 60, 30)),
    label("crate", 2, 1, (250, 200, 0)),
))

class Yard(FrameFolder):
    def __init__(self, root, classes):
        pictures = sorted(root.glob("*.jpg"))
        if not pictures:
            raise DatasetMissing(f"no yard in {root}", expected="*.jpg")
        refs = [FrameRef(p.stem, "yard", "yard", p.stem, p, p.with_suffix(".png")) for p in pictures]
        super().__init__(root, classes, refs)

yard = DatasetEntry(
    name="yard", title="the yard", label_space=YARD, open=Yard, how_to_get="film it in {root}"
)
streets = replace(yard, label_space=CITYSCAPES)
blind = replace(yard, label_space=None)
stubborn = replace(yard, open=lambda root, classes: Yard(root, CITYSCAPES))
empty = replace(yard, open=lambda root, classes: [])
closed = replace(yard, open=lambda root: Yard(root, YARD))
broken = replace(yard, open=lambda root, classes: root.nothing)
"""


@pytest.fixture
def module(foreign: Callable[[str, str], str]) -> str:
    return foreign("foreign_yard", MODULE)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two frames, one with a crate."""
    folder = tmp_path / "yard"
    folder.mkdir()
    for number in range(2):
        cv2.imwrite(str(folder / f"frame{number}.jpg"), np.full((6, 8, 3), 80 * number, np.uint8))
        ids_HW = np.full((6, 8), 1, np.uint8)
        ids_HW[:2] = 9
        ids_HW[4:, : 4 * number] = 2
        cv2.imwrite(str(folder / f"frame{number}.png"), ids_HW)
    return folder


def test_classes_are_called_as_the_data_set_is_found(module: str, root: Path) -> None:
    name = f"{module}:yard"
    source = open_dataset(name, root)
    assert source.label_space == label_space(name) == find_dataset(name).label_space
    assert (source.label_space.name, source.label_space.train_names) == (name, ("ground", "crate"))
    label_HW = source.load_label(source.refs[1])
    assert label_HW.tolist()[0] == [255] * 8 and label_HW.tolist()[-1] == [1] * 4 + [0] * 4
    matrix = ConfusionMatrix(source.label_space)
    matrix.add(label_HW, label_HW)
    assert ConfusionMatrix.from_dict(matrix.to_dict()).mean_iou() == 1
    assert find_dataset(name).open_ground_truth(root).load("frame1").ids_HW.tolist()[-1] == [2] * 4 + [1] * 4


def test_our_classes_keep_their_name(module: str) -> None:
    assert find_dataset(f"{module}:streets").label_space is CITYSCAPES


def test_missing_frames_say_how_to_get_them(module: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetMissing, match=f"no yard in {tmp_path}; film it in {tmp_path}"):
        open_dataset(f"{module}:yard", tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("YARD", ["must be of class DatasetEntry", "a LabelSpace"]),
        ("stubborn", ["what it opens has other classes than it was given"]),
        ("empty", ["what it opens lacks the method load(ref)", "a list"]),
        ("closed", ["open must take (root, label_space)", "takes (root)"]),
        ("broken", ["AttributeError", "nothing", "foreign_yard.py, line"]),
        ("blind", ["no classes of its own"]),
    ],
)
def test_data_set_that_does_not_fit_is_refused(module: str, root: Path, name: str, words: list[str]) -> None:
    with pytest.raises(SettingError) as refusal:
        open_dataset(f"{module}:{name}", root)
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


def test_scenario_takes_labelled_ones(module: str, root: Path) -> None:
    scenario = load_scenario(None, {"dataset.name": f"{module}:yard", "dataset.root": str(root)})
    assert scenario.cloud_config().label_space == f"{module}:yard"
    with pytest.raises(Mistake, match=r"with labels; got '.*:blind'"):
        load_scenario(None, {"dataset.name": f"{module}:blind", "dataset.root": str(root)})
    with pytest.raises(Mistake, match="--data-root"):
        load_scenario(None, {"dataset.name": f"{module}:yard"})
    with pytest.raises(DoorError, match="no classes of its own"):
        label_space(f"{module}:blind")


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (("a", 1, 0), ("a", 2, 1), "the name 'a' twice"),
        (("a", 1, 0), ("b", 1, 1), "the label id 1 twice"),
        (("a", 1, 0), ("b", 2, 2), "count from 0 without a gap.*got 0, 2"),
        (("a", 1, 0), ("b", 300, 1), "label ids must be 0 to 255, or -1, got 300 for b"),
        (("a", 1, 0), ("b", 2, 255), "2 to 253 of them, got 0"),
    ],
)
def test_classes_that_contradict_each_other_are_refused(
    first: tuple[str, int, int], second: tuple[str, int, int], words: str
) -> None:
    sky, void = CITYSCAPES.by_name("sky"), CITYSCAPES.by_name("static")
    rows = [replace(sky, name=name, label_id=i, train_id=t) for name, i, t in (first, second)]
    with pytest.raises(SettingError, match=words):
        LabelSpace("yard", (void, *rows))
    with pytest.raises(SettingError, match="void, with a label id"):
        LabelSpace(
            "yard", (replace(sky, label_id=1, train_id=0), replace(void, name="x", label_id=2, train_id=1))
        )
