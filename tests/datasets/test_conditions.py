"""Weather and camera faults: deterministic, graded, the same at every size, refused when misspelt."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.condition_sheet import render_condition_sheet
from datasets.conditions import CONDITIONS, Condition, apply_condition
from datasets.generated import GeneratorSettings, render_frame


@pytest.fixture(scope="module")
def image_HWC() -> NDArray[np.uint8]:
    return render_frame(GeneratorSettings(image_size=(192, 128)), 1, 0, 4).image_HWC


def change(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    return float(np.abs(first.astype(float) - second).mean())


@pytest.mark.parametrize("name", CONDITIONS)
def test_condition_is_determined_by_seed_and_frame(name: str, image_HWC: NDArray[np.uint8]) -> None:
    before = image_HWC.copy()
    first, again = (apply_condition(image_HWC, name, 3, 7, "a") for _ in range(2))
    assert first.dtype == np.uint8 and first.shape == image_HWC.shape
    assert first.tobytes() == again.tobytes()
    assert np.array_equal(image_HWC, before)


@pytest.mark.parametrize("name", CONDITIONS)
def test_condition_grows_with_its_severity(name: str, image_HWC: NDArray[np.uint8]) -> None:
    changes = [change(image_HWC, apply_condition(image_HWC, name, s, 0, "a")) for s in range(1, 6)]
    assert changes[0] > 0.3
    assert all(less < more for less, more in pairwise(changes)), changes


@pytest.mark.parametrize("name", ["lens_dirt", "colour_cast"])
def test_lasting_condition_is_the_same_on_every_frame(name: str, image_HWC: NDArray[np.uint8]) -> None:
    first, second = (apply_condition(image_HWC, name, 4, 0, key) for key in ("a", "b"))
    assert np.array_equal(first, second)
    assert change(first, apply_condition(image_HWC, name, 4, 1, "a")) > 1


@pytest.mark.parametrize("name", ["rain", "night", "motion_blur", "fog"])
def test_passing_condition_differs_between_frames(name: str, image_HWC: NDArray[np.uint8]) -> None:
    first, second = (apply_condition(image_HWC, name, 4, 0, key) for key in ("a", "b"))
    assert change(first, second) > 0.2


@pytest.mark.parametrize("name", [name for name in CONDITIONS if name not in ("rain", "night")])
def test_condition_looks_the_same_at_twice_the_size(name: str, image_HWC: NDArray[np.uint8]) -> None:
    large = cv2.resize(image_HWC, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    small = apply_condition(image_HWC, name, 4, 0, "a")
    shrunk = cv2.resize(
        apply_condition(large, name, 4, 0, "a"), (192, 128), interpolation=cv2.INTER_AREA
    ).astype(np.uint8)
    assert change(small, shrunk) < 0.25 * change(small, image_HWC)


def test_fog_hides_the_distance_before_the_near_road(image_HWC: NDArray[np.uint8]) -> None:
    foggy = apply_condition(image_HWC, "fog", 3, 0, "a").astype(float)
    contrast = [
        foggy[rows, 70:120].std() / image_HWC[rows, 70:120].std() for rows in (slice(50, 60), slice(100, 128))
    ]
    assert contrast[0] < 0.6 * contrast[1]


def test_night_is_dark_and_keeps_the_road_ahead_lit(image_HWC: NDArray[np.uint8]) -> None:
    dark = apply_condition(image_HWC, "night", 3, 0, "a")
    assert dark.mean() < 0.45 * image_HWC.mean()
    assert dark[75:105, 80:112].mean() > 1.5 * dark[75:105, :16].mean()


@pytest.mark.parametrize("name", CONDITIONS)
@pytest.mark.parametrize("value", [0, 255])
def test_condition_survives_plain_and_tiny_pictures(name: str, value: int) -> None:
    for shape in ((8, 8, 3), (9, 40, 3), (64, 8, 3)):
        image_HWC = np.full(shape, value, np.uint8)
        assert apply_condition(image_HWC, name, 5, 0, "a").shape == shape


@pytest.mark.parametrize(
    ("text", "condition"),
    [("fog:3", Condition("fog", 3)), (" night:5 ", Condition("night", 5)), ("rain", Condition("rain", 3))],
)
def test_condition_is_read_from_text(text: str, condition: Condition) -> None:
    assert Condition.parse(text) == condition
    assert Condition.parse(str(condition)) == condition


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("snow:2", "unknown condition 'snow', expected one of: fog, rain, night"),
        ("fog:6", "severity of fog must be 1 to 5, got 6"),
        ("fog:0", "severity of fog must be 1 to 5, got 0"),
        ("fog:", "must be NAME:SEVERITY"),
        ("fog:high", "must be NAME:SEVERITY"),
        ("fog:-1", "must be NAME:SEVERITY"),
        ("", "unknown condition ''"),
    ],
)
def test_misspelt_condition_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Condition.parse(text)


def test_picture_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="image must be RGB"):
        apply_condition(np.zeros((32, 32), np.uint8), "fog", 3, 0, "a")


def test_sheet_shows_every_condition_and_severity(image_HWC: NDArray[np.uint8]) -> None:
    sheet = render_condition_sheet([image_HWC] * len(CONDITIONS), severities=(1, 5))
    assert sheet.shape == (128 * len(CONDITIONS) + 4 * (len(CONDITIONS) - 1), 192 * 3 + 4 * 2, 3)
