"""Weights of classes: from counts, from tables, and at pixels."""

from __future__ import annotations

import numpy as np
import pytest

from datasets.class_weights import balanced_weights, count_classes, pixel_weights, table_weights
from datasets.labels import CAMVID, VOID
from protocol.errors import SettingError
from protocol.plans.class_weights import check_class_weights


def test_balanced_weights_are_those_of_enet_with_mean_one_over_pixels() -> None:
    counts_K = np.array([900, 90, 10, 0])
    weight_K = balanced_weights(counts_K)
    assert (counts_K @ weight_K) / counts_K.sum() == pytest.approx(1)
    enet_K = 1 / np.log(1.02 + counts_K / 1000)
    assert weight_K / weight_K[0] == pytest.approx(enet_K / enet_K[0], rel=1e-6)
    assert np.array_equal(balanced_weights(np.zeros(3, np.int64)), np.ones(3))


def test_counts_leave_void_out() -> None:
    label_HW = np.array([[0, 1, 1], [VOID, VOID, 2]], np.uint8)
    assert count_classes(label_HW, 4).tolist() == [1, 2, 1, 0]
    assert pixel_weights(np.array([2, 3, 5, 7], np.float32), label_HW).tolist() == [[2, 3, 3], [0, 0, 5]]


def test_table_names_classes_and_the_others_weigh_one() -> None:
    weight_K = table_weights({"pole": 4.0, "sign": 0.5}, CAMVID)
    assert [weight_K[CAMVID.by_name(name).train_id] for name in ("pole", "sign", "road")] == [4, 0.5, 1]
    with pytest.raises(SettingError, match="class_weights names 'poles', which is no class of camvid: sky, "):
        table_weights({"poles": 4.0}, CAMVID)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("equal", "class_weights must be none, balanced or a table of weights by class, got 'equal'"),
        ({"pole": -1.0}, "class_weights.pole must be finite and at least 0, got -1"),
        ({"pole": float("inf")}, "class_weights.pole must be finite and at least 0, got inf"),
    ],
)
def test_wrong_setting_is_named(weights: str | dict[str, float], expected: str) -> None:
    with pytest.raises(SettingError, match=expected):
        check_class_weights(weights)
