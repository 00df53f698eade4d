"""Frames in the order in which they were taken, with or without leading zeros in their names."""

from __future__ import annotations

import string
from pathlib import Path

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from datasets.catalog import open_dataset
from datasets.labels import CAMVID
from datasets.natural import natural_key
from datasets.partition import partition_frames
from datasets.readers.camvid import CamVidFrames

NAMES = st.text(alphabet=string.ascii_letters + string.digits + "_.-", max_size=12)


@given(st.lists(NAMES, max_size=8), st.randoms())
def test_the_order_is_one_of_all_names(names: list[str], random: object) -> None:
    ordered = sorted(names, key=natural_key)
    shuffled = list(names)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert sorted(shuffled, key=natural_key) == ordered


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=8), st.integers(0, 3))
def test_numbers_count_as_numbers_and_padded_names_sort_as_text(numbers: list[int], more: int) -> None:
    plain = [f"run2_frame{number}" for number in numbers]
    assert sorted(plain, key=natural_key) == [f"run2_frame{number}" for number in sorted(numbers)]
    width = len(str(max(numbers))) + more
    padded = [f"run2_frame{number:0{width}d}" for number in numbers]
    assert sorted(padded, key=natural_key) == sorted(padded)


def test_readers_and_parts_keep_the_order_of_unpadded_names(tmp_path: Path) -> None:
    for folder in ("train", "trainannot", "drive"):
        (tmp_path / folder).mkdir()
    for number in (1, 10, 2, 20, 3, 30, 4, 5, 6, 7):
        pixels = np.zeros((4, 6), np.uint8)
        for folder in ("train", "trainannot", "drive"):
            assert cv2.imwrite(str(tmp_path / folder / f"a_frame{number}.png"), pixels)
    expected = [f"a_frame{number}" for number in (1, 2, 3, 4, 5, 6, 7, 10, 20, 30)]
    labelled = CamVidFrames(tmp_path)
    assert [ref.key for ref in labelled.refs] == expected
    unlabelled = open_dataset("pictures", tmp_path / "drive", CAMVID)
    assert [ref.frame_id for ref in unlabelled.refs] == expected
    [share] = partition_frames(labelled, ["car"], method="uniform", seed=3).values()
    assert [*share.train, *share.val, *share.test] == expected


def test_camvid_frames_sort_as_they_did(camvid_root: Path) -> None:
    keys = [ref.key for ref in CamVidFrames(camvid_root).refs]
    assert keys == sorted(keys)
