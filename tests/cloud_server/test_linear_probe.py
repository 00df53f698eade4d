"""What features say of their own frames, beyond what is usual at the place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cloud_server.algorithms.linear_probe import alikeness, class_shares, explained_share
from datasets.labels import VOID

CLASSES, CHANNELS, CELLS, FRAMES, STRIDE = 5, 8, 8, 12, 4
SKY = 0


def scenes(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Features that tell their cell's class, noisily, and labels; the upper half is sky in all frames."""
    random = np.random.default_rng(seed)
    label_Bhw = random.integers(1, CLASSES, (FRAMES, CELLS, CELLS))
    label_Bhw[:, : CELLS // 2] = SKY
    looks_KC = random.standard_normal((CLASSES, CHANNELS))
    feature_BhwC = looks_KC[label_Bhw] + random.standard_normal((*label_Bhw.shape, CHANNELS))
    label_BHW = label_Bhw.repeat(STRIDE, 1).repeat(STRIDE, 2).astype(np.uint8)
    return feature_BhwC.transpose(0, 3, 1, 2).astype(np.float32), label_BHW


@given(seed=st.integers(0, 2**32 - 1))
def test_honest_features_explain_and_those_of_nothing_do_not(seed: int) -> None:
    features_BCHW, label_BHW = scenes(seed)
    random = np.random.default_rng(seed)

    def explained(features: Any) -> float:
        share = explained_share(features.astype(np.float32), label_BHW, CLASSES)
        assert share is not None
        return share

    assert 0.05 < explained(features_BCHW) < 1
    assert explained(random.standard_normal(features_BCHW.shape)) < 0.01
    assert explained(np.repeat(features_BCHW[:1], FRAMES, axis=0)) == 0
    assert explained(np.zeros_like(features_BCHW)) == 0
    assert explained(features_BCHW[random.permutation(FRAMES)]) < explained(features_BCHW)


def test_labels_of_other_names_are_explained_as_well() -> None:
    """That labels are wrong is for agreement with others to tell."""
    features_BCHW, label_BHW = scenes()
    other_BHW = ((label_BHW + 2) % CLASSES).astype(np.uint8)
    assert explained_share(features_BCHW, other_BHW, CLASSES) == pytest.approx(
        explained_share(features_BCHW, label_BHW, CLASSES)
    )


def test_scale_of_the_features_does_not_matter() -> None:
    features_BCHW, label_BHW = scenes()
    assert explained_share(1e4 * features_BCHW, label_BHW, CLASSES) == pytest.approx(
        explained_share(features_BCHW, label_BHW, CLASSES), rel=1e-4
    )


def test_frames_that_can_not_be_told_apart_tell_nothing() -> None:
    features_BCHW, label_BHW = scenes()
    standing_BHW = np.repeat(label_BHW[:1], FRAMES, axis=0)
    assert explained_share(features_BCHW, standing_BHW, CLASSES) is None
    assert explained_share(features_BCHW[:3], label_BHW[:3], CLASSES) is None
    assert explained_share(features_BCHW[..., :4, :4], label_BHW[:, :16, :16], CLASSES) is None
    assert explained_share(features_BCHW, np.full_like(label_BHW, VOID), CLASSES) is None


def test_shares_of_classes_leave_void_out() -> None:
    label_BHW = np.array([[[1, 1, 2, VOID], [1, 2, VOID, VOID], [VOID, VOID, 0, 0]]], np.uint8)
    share_BhwK, known_Bhw = class_shares(label_BHW, (1, 2), 3)
    assert share_BhwK.tolist() == [[[[0, 0.75, 0.25], [2 / 3, 0, 1 / 3]]]]
    assert known_Bhw.tolist() == [[[True, True]]]
    share_BhwK, known_Bhw = class_shares(label_BHW, (3, 2), 3)
    assert known_Bhw.tolist() == [[[True, True], [True, False], [False, True]]]


def test_alikeness_is_the_share_of_equal_pixels() -> None:
    label_BHW = np.array([[[1, 2]], [[1, 3]], [[1, VOID]]], np.uint8)
    assert alikeness(label_BHW) == 3 / 4
    assert alikeness(label_BHW[:1]) == alikeness(np.full((2, 1, 1), VOID, np.uint8)) == 1
