"""Views of frames: drawn from seeds, pictures and labels alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.augment import WHOLE, View, draw_view, seen_labels, view_seed
from protocol.errors import SettingError
from protocol.plans.augmentation import Augmentation

SIZE = (64, 48)
ALL = Augmentation(flip=True, crop=0.5, jitter=0.3)

views = st.builds(
    draw_view,
    st.builds(Augmentation, flip=st.booleans(), crop=st.one_of(st.just(0.0), st.floats(0.1, 0.99))),
    st.tuples(st.integers(8, 200), st.integers(8, 200)),
    st.integers(0, 2**63),
)


def test_view_is_pinned_to_its_seed() -> None:
    view = draw_view(ALL, SIZE, view_seed(1, 2, 3))
    assert view == draw_view(ALL, SIZE, view_seed(1, 2, 3))
    assert (view.flip, view.box) == (True, (7, 7, 55, 41))
    others = {draw_view(ALL, SIZE, view_seed(*seed)) for seed in ((2, 2, 3), (1, 3, 3), (1, 2, 4))}
    assert len(others | {view}) == 4


def test_settings_that_are_off_draw_nothing() -> None:
    label_HW = np.arange(48 * 64, dtype=np.uint8).reshape(48, 64)
    image_HWC = np.repeat(label_HW[:, :, None], 3, axis=2)
    for seed in range(5):
        view = draw_view(Augmentation(), SIZE, seed)
        assert np.array_equal(view.image(image_HWC), image_HWC)
        assert np.array_equal(view.label(label_HW), label_HW)
    assert not Augmentation().is_on and Augmentation(jitter=0.1).is_on
    assert seen_labels(label_HW[None], ()) is not None
    assert np.array_equal(seen_labels(label_HW[None], [WHOLE]), label_HW[None])


def test_flips_come_half_of_the_time_and_boxes_lie_anywhere() -> None:
    drawn = [draw_view(ALL, SIZE, seed) for seed in range(400)]
    assert 160 < sum(view.flip for view in drawn) < 240
    for axis in (0, 1):
        sides = [view.box[2 + axis] / SIZE[axis] for view in drawn]
        assert 0.49 < min(sides) < 0.52 and 0.98 < max(sides) <= 1
        slack = [(view.box[axis], SIZE[axis] - view.box[2 + axis]) for view in drawn]
        assert all(0 <= first <= most for first, most in slack)
        places = [first / most for first, most in slack if most > 4]
        assert min(places) < 0.1 and max(places) > 0.9


@given(view=views)
def test_picture_label_and_map_show_the_same_place(view: View) -> None:
    """A picture whose red is its column and whose green is its row, beside labels that say the same."""
    width, height = view.size
    column_HW, row_HW = np.meshgrid(np.arange(width, dtype=np.uint8), np.arange(height, dtype=np.uint8))
    seen_HWC = view.image(np.stack([column_HW, row_HW, row_HW], axis=2)).astype(int)
    for channel, place_HW in enumerate((column_HW, row_HW)):
        assert np.abs(seen_HWC[:, :, channel] - view.label(place_HW)).max() <= 1
        assert np.array_equal(view.label(place_HW), view.map(place_HW.astype(np.float32)))


@given(view=views, cells=st.tuples(st.integers(1, 12), st.integers(1, 12)))
def test_map_of_what_was_seen_goes_back_to_its_place(view: View, cells: tuple[int, int]) -> None:
    seen_yx = view.map(np.arange(cells[0] * cells[1], dtype=np.float32).reshape(cells))
    whole_yx = view.whole_map(seen_yx, unseen=-1)
    if view.box[2:] == view.size:
        assert np.array_equal(view.map(whole_yx), seen_yx)
    # what a cell shows lies at most a cell beside it, as nearest cells do
    places = np.stack(np.indices(cells))
    kept = whole_yx >= 0
    found = np.stack(np.unravel_index(whole_yx[kept].astype(int), cells))
    assert np.abs(found - places[:, kept]).max(initial=0) <= 1


def test_jitter_changes_colours_alone() -> None:
    grey_HWC = np.full((48, 64, 3), 100, np.uint8)
    means = set()
    for seed in range(20):
        view = draw_view(Augmentation(jitter=0.4), SIZE, seed)
        seen_HWC = view.image(grey_HWC)
        assert view.box == (0, 0, *SIZE) and not view.flip
        assert np.ptp(seen_HWC) <= 1, "a grey picture stays an even grey, up to rounding"
        assert 59 <= seen_HWC.min() <= seen_HWC.max() <= 141
        means.add(int(seen_HWC[0, 0, 0]))
    assert len(means) > 10
    red_HWC = np.tile(np.array([200, 50, 50], np.uint8), (48, 64, 1))
    pale = View(size=SIZE, box=(0, 0, *SIZE), tone=(1.0, 1.0, 0.0)).image(red_HWC)
    assert np.ptp(pale[0, 0]) <= 1


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("crop", 1.0, "augmentation.crop must be at least 0 and below 1, got 1.0"),
        ("crop", 0.05, r"augmentation.crop must be 0 \(whole frames\) or at least 0.1, got 0.05"),
        ("jitter", -0.1, "augmentation.jitter must be at least 0 and below 1, got -0.1"),
    ],
)
def test_wrong_setting_is_named(setting: str, value: float, expected: str) -> None:
    with pytest.raises(SettingError, match=expected):
        Augmentation(**{setting: value})
