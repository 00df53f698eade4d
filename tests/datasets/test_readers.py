"""Readers and the writer: round trips, the layouts of CamVid, and every kind of faulty file."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.catalog import DATASETS, open_dataset
from datasets.check import check_frames
from datasets.frame import DatasetError, Frame, FrameSource, resize_frame
from datasets.labels import CAMVID, CITYSCAPES, VOID
from datasets.readers.camvid import ORIGINAL_CLASSES, CamVidFrames
from datasets.readers.cityscapes import CityscapesFrames, write_cityscapes_frame
from datasets.readers.folder import DatasetMissing
from datasets.readers.image_files import decode_ids


def make_frame(number: int, city: str = "aachen", sequence: str = "000000") -> Frame:
    """A frame of noise, 12x8, with void pixels of several ids and two instances of one car."""
    rng = np.random.default_rng(number)
    ids_HW = rng.integers(0, 34, (8, 12)).astype(np.uint8)
    instance_HW = ids_HW.astype(np.int32)
    ids_HW[:2] = 26
    instance_HW[0], instance_HW[1] = 26000, 26001
    return Frame(
        image_HWC=rng.integers(0, 256, (8, 12, 3)).astype(np.uint8),
        label_HW=CITYSCAPES.to_train_ids(ids_HW),
        instance_HW=instance_HW,
        city=city,
        sequence=sequence,
        frame_id=f"{number:06d}",
    )


@pytest.fixture
def cityscapes_root(tmp_path: Path) -> Path:
    """Three frames of two cities to train, one to validate."""
    for split, city, number in (("train", "bonn", 0), ("train", "aachen", 2), ("train", "aachen", 1)):
        write_cityscapes_frame(tmp_path, split, make_frame(number, city))
    write_cityscapes_frame(tmp_path, "val", make_frame(3, "ulm"))
    return tmp_path


def label_file(root: Path, number: int) -> Path:
    return root / f"gtFine/train/aachen/aachen_000000_{number:06d}_gtFine_labelIds.png"


def same_frames(a: Frame, b: Frame) -> bool:
    assert (a.instance_HW is None) == (b.instance_HW is None)
    same_instances = a.instance_HW is None or np.array_equal(a.instance_HW, b.instance_HW)  # type: ignore[arg-type]
    same_pixels = np.array_equal(a.image_HWC, b.image_HWC) and np.array_equal(a.label_HW, b.label_HW)
    return a.key == b.key and same_pixels and same_instances


# ---- Cityscapes


def test_cityscapes_reads_what_was_written(cityscapes_root: Path) -> None:
    frames: FrameSource = CityscapesFrames(cityscapes_root)
    assert [ref.key for ref in frames.refs] == [
        "aachen_000000_000001",
        "aachen_000000_000002",
        "bonn_000000_000000",
        "ulm_000000_000003",
    ]
    for ref in frames.refs:
        expected = make_frame(int(ref.frame_id), ref.city)
        assert same_frames(frames.load(ref), expected)
        np.testing.assert_array_equal(frames.load_image(ref), expected.image_HWC)
        np.testing.assert_array_equal(frames.load_label(ref), expected.label_HW)
    assert not list(cityscapes_root.rglob("*.tmp"))


def test_writer_keeps_the_ids_of_void_classes(tmp_path: Path) -> None:
    frame = make_frame(1)
    ref = write_cityscapes_frame(tmp_path, "train", frame)
    assert frame.instance_HW is not None
    ids_HW = decode_ids(ref.label_path)
    np.testing.assert_array_equal(ids_HW[2:], frame.instance_HW[2:])
    np.testing.assert_array_equal(ids_HW[:2], 26)


def test_writer_without_instances_uses_the_table(tmp_path: Path) -> None:
    frame = replace(make_frame(1), instance_HW=None)
    ref = write_cityscapes_frame(tmp_path, "train", frame)
    ids_HW = decode_ids(ref.label_path)
    np.testing.assert_array_equal(ids_HW, CITYSCAPES.to_ids(frame.label_HW))
    assert same_frames(CityscapesFrames(tmp_path, splits=["train"]).load(ref), frame)


def test_writer_refuses_what_does_not_fit(tmp_path: Path) -> None:
    frame = make_frame(1)
    with pytest.raises(DatasetError, match="got 'new_york_000000_000001'"):
        write_cityscapes_frame(tmp_path, "train", replace(frame, city="new_york"))
    with pytest.raises(DatasetError, match=r"instance ids contradict the trainIds in \d+ pixels"):
        write_cityscapes_frame(tmp_path, "train", replace(frame, label_HW=np.zeros((8, 12), np.uint8)))
    assert not list(tmp_path.iterdir())


def test_writer_into_an_unwritable_place_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "leftImg8bit").write_text("in the way")
    with pytest.raises(OSError, match="leftImg8bit"):
        write_cityscapes_frame(tmp_path, "train", make_frame(1))


def test_official_test_split_is_left_out(cityscapes_root: Path) -> None:
    write_cityscapes_frame(cityscapes_root, "test", make_frame(9, "berlin"))
    assert "berlin" not in {ref.city for ref in CityscapesFrames(cityscapes_root).refs}
    assert [ref.city for ref in CityscapesFrames(cityscapes_root, splits=["test"]).refs] == ["berlin"]


def test_unpaired_files_are_named_in_one_error(cityscapes_root: Path) -> None:
    label_file(cityscapes_root, 1).unlink()
    next((cityscapes_root / "leftImg8bit/val/ulm").iterdir()).unlink()
    with pytest.raises(DatasetError) as caught:
        CityscapesFrames(cityscapes_root)
    message = str(caught.value)
    assert "2 faults" in message and "\n" not in message
    assert "image without label: " in message and "aachen_000000_000001_leftImg8bit.png" in message
    assert "label without image: " in message and "ulm_000000_000003_gtFine_labelIds.png" in message


def test_many_faults_name_ten_and_count_all(tmp_path: Path) -> None:
    for number in range(13):
        write_cityscapes_frame(tmp_path, "train", make_frame(number)).label_path.unlink()
    with pytest.raises(DatasetError, match=r"13 faults: .*; and 3 more$") as caught:
        CityscapesFrames(tmp_path, splits=["train"])
    assert str(caught.value).count("image without label") == 10


def test_misplaced_and_repeated_frames_are_refused(cityscapes_root: Path) -> None:
    images, labels = cityscapes_root / "leftImg8bit", cityscapes_root / "gtFine"
    for kind in (images, labels):
        shutil.copytree(kind / "train/bonn", kind / "train/cologne")
        shutil.copytree(kind / "train/bonn", kind / "val/bonn")
    with pytest.raises(DatasetError) as caught:
        CityscapesFrames(cityscapes_root)
    assert "name is not cologne_<6 digits>_<6 digits>" in str(caught.value)
    assert "frame in two splits" in str(caught.value)


def test_missing_split_and_empty_split_are_refused(cityscapes_root: Path) -> None:
    shutil.rmtree(cityscapes_root / "gtFine/val")
    with pytest.raises(DatasetError, match=r"1 fault: missing folder: .*gtFine/val$"):
        CityscapesFrames(cityscapes_root)
    for kind in ("leftImg8bit", "gtFine"):
        (cityscapes_root / kind / "test").mkdir()
    with pytest.raises(DatasetError, match="no frames in the splits test"):
        CityscapesFrames(cityscapes_root, splits=["test"])


def test_faulty_files_are_named_when_loaded_and_gathered_by_the_check(cityscapes_root: Path) -> None:
    frames = CityscapesFrames(cityscapes_root)
    check_frames(frames)
    unknown, broken, small, instances = frames.refs
    cv2.imwrite(str(unknown.label_path), np.full((8, 12), 77, np.uint8))
    broken.image_path.write_bytes(broken.image_path.read_bytes()[:60])
    cv2.imwrite(str(small.label_path), np.full((4, 6), 7, np.uint8))
    assert instances.instance_path is not None
    cv2.imwrite(str(instances.instance_path), np.full((8, 12), 7, np.uint8))
    expected = {
        unknown: "label ids 77 are not cityscapes ids",
        broken: r"not a readable image \(60 bytes\)",
        small: "6x4 pixels, but its image has 12x8",
        instances: "expected a grey PNG of 16 bits that holds instance ids, got a grey PNG of 8 bits",
    }
    for ref, message in expected.items():
        with pytest.raises(DatasetError, match=rf"{ref.key}_\w+\.png: {message}"):
            frames.load(ref)
    with pytest.raises(DatasetError, match="4 faults") as caught:
        check_frames(frames)
    assert all(ref.key in str(caught.value) for ref in expected)


def test_labels_that_are_no_id_images_are_refused(cityscapes_root: Path) -> None:
    frames = CityscapesFrames(cityscapes_root)
    path = label_file(cityscapes_root, 1)
    for content, message in (
        (
            np.zeros((8, 12, 3), np.uint8),
            "expected a grey PNG of 8 bits that holds ids, got an RGB PNG of 8 bits",
        ),
        (
            np.zeros((8, 12), np.uint16),
            "expected a grey PNG of 8 bits that holds ids, got a grey PNG of 16 bits",
        ),
    ):
        cv2.imwrite(str(path), content)
        with pytest.raises(DatasetError, match=message):
            frames.load(frames.refs[0])
    path.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"not a readable image \(0 bytes\)"):
        frames.load(frames.refs[0])
    path.unlink()
    with pytest.raises(DatasetError, match="No such file"):
        frames.load(frames.refs[0])


# ---- CamVid


def make_segnet(root: Path, splits: dict[str, list[str]]) -> None:
    """CamVid in SegNet's layout: each frame 12x8 with all 12 ids, one a column."""
    for split, stems in splits.items():
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
        for stem in stems:
            cv2.imwrite(str(root / split / f"{stem}.png"), np.full((8, 12, 3), (10, 20, 30), np.uint8))
            cv2.imwrite(
                str(root / f"{split}annot/{stem}.png"), np.tile(np.arange(12, dtype=np.uint8), (8, 1))
            )


COLUMNS_HW = np.tile(np.array([*range(11), VOID], np.uint8), (8, 1))


def test_segnet_layout_reads_all_splits(tmp_path: Path) -> None:
    make_segnet(tmp_path, {"train": ["0016E5_00390", "0001TP_006690"], "val": ["0016E5_07959"]})
    frames = CamVidFrames(tmp_path)
    assert [ref.key for ref in frames.refs] == ["0001TP_006690", "0016E5_00390", "0016E5_07959"]
    frame = frames.load(frames.refs[0])
    assert (frame.city, frame.sequence, frame.frame_id) == ("0001TP", "0001TP", "006690")
    assert frame.key == "0001TP_006690" and frame.instance_HW is None
    assert tuple(frame.image_HWC[0, 0]) == (30, 20, 10)
    np.testing.assert_array_equal(frame.label_HW, COLUMNS_HW)


def test_segnet_lists_choose_frames_by_name_whatever_their_paths(tmp_path: Path) -> None:
    make_segnet(tmp_path, {"train": ["A_1", "A_2", "A_3"]})
    (tmp_path / "train.txt").write_text(
        "/SegNet/CamVid/train/A_1.png /SegNet/CamVid/trainannot/A_1.png\n\nA_3.png"
    )
    assert [ref.key for ref in CamVidFrames(tmp_path).refs] == ["A_1", "A_3"]
    (tmp_path / "train.txt").write_text("train/A_4.png trainannot/A_4.png\n")
    with pytest.raises(DatasetError, match=r"listed in train.txt, but missing: .*A_4\.png"):
        CamVidFrames(tmp_path)


def test_segnet_faults_are_named_in_one_error(tmp_path: Path) -> None:
    make_segnet(tmp_path, {"train": ["A_1", "A_2", "B"], "val": ["A_1"], "test": []})
    (tmp_path / "train/A_2.png").unlink()
    (tmp_path / "test").rmdir()
    with pytest.raises(DatasetError, match="4 faults") as caught:
        CamVidFrames(tmp_path)
    for fault in (
        "label without image: ",
        "frame in two splits: ",
        "missing folder: ",
        "name is not <sequence>_<frame>.png: ",
    ):
        assert fault in str(caught.value)


def make_original(root: Path, colors: list[tuple[int, int, int]]) -> None:
    """CamVid in its original layout: one frame, one colour a column."""
    (root / "701_StillsRaw_full").mkdir()
    (root / "LabeledApproved_full").mkdir()
    image_HWC = np.zeros((4, len(colors), 3), np.uint8)
    cv2.imwrite(str(root / "701_StillsRaw_full/Seq05VD_f00000.png"), image_HWC)
    image_HWC[:] = np.array(colors, np.uint8)[:, ::-1]
    cv2.imwrite(str(root / "LabeledApproved_full/Seq05VD_f00000_L.png"), image_HWC)


def test_original_layout_maps_its_32_colors(tmp_path: Path) -> None:
    assert len(ORIGINAL_CLASSES) == len(dict(ORIGINAL_CLASSES.values())) == 32
    assert {value for color, _ in ORIGINAL_CLASSES.values() for value in color} == {0, 64, 128, 192}
    make_original(tmp_path, [color for color, _ in ORIGINAL_CLASSES.values()])
    frames = CamVidFrames(tmp_path)
    assert [(ref.key, ref.city) for ref in frames.refs] == [("Seq05VD_f00000", "Seq05VD")]
    expected = [CAMVID.by_name(name).train_id for _, name in ORIGINAL_CLASSES.values()]
    np.testing.assert_array_equal(frames.load(frames.refs[0]).label_HW, [expected] * 4)


def test_original_layout_takes_colors_from_its_table(tmp_path: Path) -> None:
    make_original(tmp_path, [(1, 2, 3), (4, 5, 6)])
    frames = CamVidFrames(tmp_path)
    with pytest.raises(DatasetError, match=r"_L.png: 8 pixels of no CamVid colour, such as \(1, 2, 3\)"):
        frames.load(frames.refs[0])
    (tmp_path / "label_colors.txt").write_text("1 2 3\t\tTree\n4 5 6\t\tAnimal\n")
    label_HW = CamVidFrames(tmp_path).load(frames.refs[0]).label_HW
    np.testing.assert_array_equal(label_HW[0], [5, 9])
    for table, message in (
        ("1 2 3 Tree\n4 5 6 Cow\n", ", line 2: expected `R G B name`"),
        ("1 2 300 Tree\n", ", line 1: expected `R G B name`"),
        ("1 2 Tree\n", ", line 1: expected `R G B name`"),
        ("\n", ": expected `R G B name` a line, got an empty file"),
    ):
        (tmp_path / "label_colors.txt").write_text(table)
        with pytest.raises(DatasetError, match=rf"label_colors\.txt{message}"):
            CamVidFrames(tmp_path)


def test_real_camvid_is_read_whole(camvid_root: Path) -> None:
    frames = open_dataset("camvid", camvid_root)
    counts = {city: sum(ref.city == city for ref in frames.refs) for city in ("0001TP", "0006R0", "0016E5")}
    assert counts == {"0001TP": 62, "0006R0": 101, "0016E5": 305}
    assert len({ref.key for ref in frames.refs}) == len(frames.refs) == 468
    seen: set[int] = set()
    for ref in frames.refs[::50]:
        frame = frames.load(ref)
        assert frame.key == ref.key and frame.image_HWC.shape == (360, 480, 3)
        seen |= set(np.unique(frame.label_HW).tolist())
    assert seen == {*range(11), VOID}


# ---- the catalogue, and frames at other sizes


def test_missing_data_says_what_was_expected_and_how_to_get_it(tmp_path: Path) -> None:
    for name in DATASETS:
        with pytest.raises(DatasetMissing) as caught:
            open_dataset(name, tmp_path / "nowhere", CITYSCAPES)
        message = str(caught.value)
        assert "nowhere: expected" in message and "blackfleet dataset generate" in message
        assert "\n" not in message and "{root}" not in message
    with pytest.raises(
        ValueError, match="unknown data set 'kitti', expected one of: folder, cityscapes, camvid"
    ):
        open_dataset("kitti", tmp_path)


def test_resize_keeps_labels_aligned_and_pictures_averaged() -> None:
    frame = make_frame(0)
    assert resize_frame(frame, 12, 8) is frame
    half = resize_frame(frame, 6, 4)
    assert half.instance_HW is not None and half.instance_HW.dtype == np.int32
    area_HWC = frame.image_HWC.reshape(4, 2, 6, 2, 3).mean(axis=(1, 3))
    assert np.abs(half.image_HWC - area_HWC).max() <= 0.5
    assert set(np.unique(half.label_HW)) <= set(np.unique(frame.label_HW))
    double = resize_frame(frame, 24, 16)
    np.testing.assert_array_equal(double.label_HW, frame.label_HW.repeat(2, axis=0).repeat(2, axis=1))
    assert double.image_HWC.shape == (16, 24, 3) and double.key == frame.key
    # The middle one of three, not their first, which is what pixel corners would choose.
    np.testing.assert_array_equal(resize_frame(frame, 4, 8).label_HW, frame.label_HW[:, 1::3])


def test_resize_to_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1x1, got 0x8"):
        resize_frame(make_frame(0), 0, 8)
