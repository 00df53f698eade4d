"""Label files that say who has made them: written, read back, and not believed when they say nonsense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from datasets.label_files import FILES, NONE, OTHERS, count_origins, label_beside, origin, read_words, signed
from datasets.labels import CAMVID
from datasets.readers.image_files import decode_ids
from datasets.readers.unlabelled import Pictures

WORDS = {"teacher": "0123456789abcdef", "confidence": 0.9}


def png(ids: int = 3) -> bytes:
    return cv2.imencode(".png", np.full((6, 8), ids, np.uint8))[1].tobytes()


def test_signed_label_is_the_same_picture_and_names_its_maker(tmp_path: Path) -> None:
    plain, told = tmp_path / "plain.png", tmp_path / "told.png"
    plain.write_bytes(png())
    told.write_bytes(signed(png(), WORDS))
    np.testing.assert_array_equal(decode_ids(told), decode_ids(plain))
    assert read_words(told) == WORDS
    assert [origin(path) for path in (plain, told, None)] == [FILES, "teacher 0123456789abcdef", NONE]


@pytest.mark.parametrize(
    "words", [["teacher"], {"teacher": "me"}, {"teacher": 7}, {"confidence": 1}, "teacher"]
)
def test_label_that_says_something_else_is_a_file_like_others(words: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(signed(png(), words))
    assert origin(path) == FILES
    path.write_bytes(signed(png(), WORDS)[:50])
    assert origin(path) == FILES
    assert origin(tmp_path / "gone.png") == FILES


def test_makers_are_counted_and_many_are_others() -> None:
    assert count_origins([FILES, NONE, FILES]) == {FILES: 2, NONE: 1}
    many = [f"teacher {number:016x}" for number in range(20)] + [FILES] * 3
    counts = count_origins(many)
    assert (len(counts), counts[FILES], sum(counts.values())) == (16, 3, 23)
    assert counts[OTHERS] == 6


def test_folder_of_pictures_has_the_labels_beside_them(tmp_path: Path) -> None:
    """With three, frames without are left out; with fewer they stay; no label is taken for a picture."""
    for number in range(5):
        path = tmp_path / "drive" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), np.full((6, 8, 3), 9, np.uint8))
        if number in (1, 3):
            label_beside(path).write_bytes(png())
    some = Pictures(tmp_path, CAMVID)
    assert [ref.label_path is not None for ref in some.refs] == [False, True, False, True, False]
    assert (some.load(some.refs[1]).label_HW == 3).all() and (some.load(some.refs[0]).label_HW == 255).all()
    label_beside(tmp_path / "drive" / "4.png").write_bytes(png())
    assert [ref.frame_id for ref in Pictures(tmp_path, CAMVID).refs] == ["1", "3", "4"]
