"""The label tables against the official one, and the lookups made from them."""

from __future__ import annotations

import numpy as np
import pytest
from official_tool import run_official

from datasets.catalog import label_space
from datasets.labels import CAMVID, CITYSCAPES, UNKNOWN_ID, VOID, LabelSpace


def test_cityscapes_table_equals_the_official_one() -> None:
    official = run_official(
        "import json, cityscapesscripts.helpers.labels as table; print(json.dumps(table.labels))"
    )
    assert len(CITYSCAPES.classes) == len(official) == 35
    for ours, theirs in zip(CITYSCAPES.classes, official, strict=True):
        name, label_id, train_id, category, category_id, has_instances, ignored, color = theirs
        # Only the licence plate differs: its official trainId is -1, which an image can't hold.
        assert (ours.name, ours.label_id) == (name, label_id)
        assert ours.train_id == (VOID if train_id == -1 else train_id)
        assert (ours.category, ours.category_id) == (category, category_id)
        assert (ours.has_instances, ours.ignore_in_eval) == (has_instances, ignored)
        assert ours.color_rgb == tuple(color)


@pytest.mark.parametrize("space", [CITYSCAPES, CAMVID], ids=lambda space: space.name)
def test_lookups_are_inverse_on_trained_classes(space: LabelSpace) -> None:
    train_ids = np.arange(space.num_classes, dtype=np.uint8)
    np.testing.assert_array_equal(space.to_train_ids(space.to_ids(train_ids)), train_ids)
    for c in space.trained_classes:
        assert space.train_names[c.train_id] == c.name
        assert tuple(space.palette_rgb[c.train_id]) == c.color_rgb
    assert space.to_train_ids(space.to_ids(np.array([VOID], np.uint8))) == VOID
    assert not space.palette_rgb[VOID].any()


def test_class_counts_and_void_ids() -> None:
    assert (CITYSCAPES.num_classes, CAMVID.num_classes) == (19, 11)
    assert (CITYSCAPES.train_id_to_id[VOID], CAMVID.train_id_to_id[VOID]) == (0, 11)
    assert CITYSCAPES.id_to_train_id[34] == CAMVID.id_to_train_id[12] == UNKNOWN_ID


def test_unknown_ids_are_refused_by_number() -> None:
    with pytest.raises(ValueError, match="label ids 12, 200 are not camvid ids"):
        CAMVID.to_train_ids(np.array([[0, 12], [200, 11]], np.uint8))


def test_lookups_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        CITYSCAPES.palette_rgb[0] = 1


def test_colorize_paints_each_pixel() -> None:
    label_HW = np.array([[13, VOID]], np.uint8)
    np.testing.assert_array_equal(CITYSCAPES.colorize(label_HW), [[[0, 0, 142], [0, 0, 0]]])


def test_camvid_borrows_cityscapes_colors_and_categories() -> None:
    pairs = {"pavement": "sidewalk", "tree": "vegetation", "sign": "traffic sign"}
    pairs |= {"pedestrian": "person", "bicyclist": "rider"}
    for c in CAMVID.trained_classes:
        twin = CITYSCAPES.by_name(pairs.get(c.name, c.name))
        assert (c.color_rgb, c.category, c.category_id) == (twin.color_rgb, twin.category, twin.category_id)


def test_unknown_names_list_the_known_ones() -> None:
    assert label_space("camvid") is CAMVID
    with pytest.raises(ValueError, match=r"unknown label space 'kitti', expected one of: cityscapes, camvid"):
        label_space("kitti")
    with pytest.raises(ValueError, match=r"camvid has no class 'cow', expected one of: sky, "):
        CAMVID.by_name("cow")
