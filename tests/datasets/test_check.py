"""The look at all frames before a run: what it finds, what it remembers, and when it looks again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets.check import check_frames
from datasets.frame import DatasetError, Frame, FrameRef
from datasets.readers.camvid import CamVidFrames

FRAMES = 14


class CountedFrames(CamVidFrames):
    """CamVid that says which frames were read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.read: list[str] = []

    def load(self, ref: FrameRef) -> Frame:
        self.read.append(ref.key)
        return super().load(ref)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A CamVid folder; the label of frame 2 is void."""
    root = tmp_path / "data"
    for number in range(FRAMES):
        for folder, value in (("train", 90), ("trainannot", 11 if number == 2 else 3)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(root / folder / f"A_{number:02d}.png"), np.full((4, 6), value, np.uint8))
    return root


def names_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def check(root: Path, *, workers: int = 1) -> tuple[list[str], frozenset[str]]:
    """Frames that were read, and those whose labels are void."""
    frames = CountedFrames(root)
    checked = check_frames(frames, remember=True, workers=workers)
    return sorted(frames.read), checked.void


@pytest.mark.parametrize("workers", [1, 3])
def test_a_second_start_reads_only_what_has_changed(root: Path, cache: Path, workers: int) -> None:
    before = names_in(root)
    assert check(root, workers=workers) == ([f"A_{number:02d}" for number in range(FRAMES)], {"A_02"})
    assert check(root, workers=workers) == ([], {"A_02"})
    assert names_in(root) == before and len(names_in(cache)) == 1
    label = root / "trainannot" / "A_05.png"
    assert cv2.imwrite(str(label), np.full((4, 6), 11, np.uint8))
    status = label.stat()
    os.utime(label, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert check(root, workers=workers) == (["A_05"], {"A_02", "A_05"})
    (root / "train" / "A_07.png").write_bytes(b"cut")
    with pytest.raises(DatasetError, match=r"1 fault: .*A_07.png: not a readable image \(3 bytes\)"):
        check(root)
    with pytest.raises(DatasetError, match="1 fault"):
        check(root)


def test_ten_faults_are_named_and_the_rest_is_counted_and_the_good_ones_are_remembered(
    root: Path, cache: Path
) -> None:
    for number in range(12):
        assert cv2.imwrite(str(root / "trainannot" / f"A_{number:02d}.png"), np.zeros((3, 6), np.uint8))
    frames = CountedFrames(root)
    for read in (FRAMES, 12):
        frames.read.clear()
        with pytest.raises(DatasetError, match=r"camvid frames: 12 faults: .*; and 2 more$") as error:
            check_frames(frames, remember=True)
        assert str(error.value).count("6x3 pixels, but its image has 6x4") == 10
        assert "\n" not in str(error.value) and len(frames.read) == read


def test_a_check_that_is_stopped_remembers_how_far_it_came(root: Path, cache: Path) -> None:
    def stop(done: int, total: int) -> None:
        assert total == FRAMES
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_frames(CountedFrames(root), remember=True, progress=stop)
    read, _ = check(root)
    assert 0 < len(read) < FRAMES


@given(
    st.one_of(
        st.binary(max_size=40),
        st.recursive(
            st.none() | st.integers() | st.text(max_size=3),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
            ),
        ).map(lambda content: json.dumps({"version": 1, "frames": content}).encode()),
        st.just(b"[" * 100_000),
    )
)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_memory_is_not_believed(root: Path, cache: Path, content: bytes) -> None:
    check(root)
    [memory] = names_in(cache)
    memory.write_bytes(content)
    assert len(check(root)[0]) == FRAMES
    assert check(root)[0] == []


def test_without_a_folder_to_remember_in_frames_are_read_each_time(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(check(root)[0]) == len(check(root)[0]) == FRAMES


def test_another_table_of_colours_is_another_reading(tmp_path: Path, cache: Path) -> None:
    for folder, name in (("images", "A_1.png"), ("labels", "A_1_L.png")):
        (tmp_path / folder).mkdir()
        assert cv2.imwrite(str(tmp_path / folder / name), np.full((4, 6, 3), 128, np.uint8))
    table = tmp_path / "label_colors.txt"
    table.write_text("128 128 128 Sky\n")
    assert check(tmp_path) == (["A_1"], frozenset())
    assert check(tmp_path)[0] == []
    table.write_text("128 128 128 Void\n")
    assert check(tmp_path) == (["A_1"], {"A_1"})
