"""Generated driving scenes: determined by the seed, labelled exactly, moving, readable as Cityscapes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from datasets.check import check_frames
from datasets.frame import Frame
from datasets.generated import GeneratorSettings, generate_dataset, render_frame
from datasets.generated.camera import Camera, clip_near
from datasets.generated.draws import Draws, Purpose
from datasets.generated.look import make_look
from datasets.generated.write import GeneratorFolderError
from datasets.labels import CITYSCAPES, VOID
from datasets.readers.cityscapes import CityscapesFrames
from protocol.errors import SettingError

SETTINGS = GeneratorSettings(cities=3, sequences_per_city=2, frames_per_sequence=12, image_size=(128, 96))
TINY = GeneratorSettings(cities=2, sequences_per_city=1, frames_per_sequence=3, image_size=(64, 48), seed=3)


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return [render_frame(SETTINGS, city, 0, frame) for city in range(3) for frame in range(0, 12, 2)]


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_frame_rendered_alone_equals_the_one_rendered_in_order() -> None:
    in_order = [render_frame(SETTINGS, 1, 1, frame) for frame in range(3)]
    render_frame(GeneratorSettings(seed=9, image_size=(64, 64)), 0, 0, 0)
    alone = render_frame(SETTINGS, 1, 1, 2)
    assert in_order[2].image_HWC.tobytes() == alone.image_HWC.tobytes()
    assert in_order[2].label_HW.tobytes() == alone.label_HW.tobytes()
    assert in_order[2].key == alone.key == "brockstad_000001_000002"


def test_frame_has_the_promised_shapes_and_types(frames: list[Frame]) -> None:
    for frame in frames:
        assert frame.image_HWC.shape == (96, 128, 3) and frame.image_HWC.dtype == np.uint8
        assert frame.label_HW.shape == (96, 128) and frame.label_HW.dtype == np.uint8
        assert frame.instance_HW is not None
        assert frame.instance_HW.shape == (96, 128) and frame.instance_HW.dtype == np.int32


def test_seed_city_and_sequence_each_change_the_picture() -> None:
    first = render_frame(SETTINGS, 0, 0, 0).image_HWC
    others = [
        render_frame(SETTINGS, 1, 0, 0),
        render_frame(SETTINGS, 0, 1, 0),
        render_frame(GeneratorSettings(**{**vars(SETTINGS), "seed": 1}), 0, 0, 0),
    ]
    for other in others:
        assert np.abs(first.astype(int) - other.image_HWC).mean() > 10


def test_scene_moves_a_little_from_frame_to_frame() -> None:
    near, next_frame, far = (render_frame(SETTINGS, 0, 0, frame).label_HW for frame in (0, 1, 11))
    changed_next, changed_far = (near != next_frame).mean(), (near != far).mean()
    assert 0.01 < changed_next < changed_far


def test_labels_hold_the_classes_of_a_street(frames: list[Frame]) -> None:
    counts = np.bincount(np.concatenate([f.label_HW.ravel() for f in frames]), minlength=256)
    shares = counts / counts.sum()
    share = {name: shares[train_id] for train_id, name in enumerate(CITYSCAPES.train_names)}
    assert set(np.flatnonzero(counts)) <= {*range(19), VOID}
    for name, least in {"road": 0.2, "building": 0.05, "vegetation": 0.03, "sky": 0.03, "car": 0.02}.items():
        assert share[name] > least, name
    for name in ("sidewalk", "pole", "traffic light", "traffic sign", "person", "rider"):
        assert share[name] > 0.0005, name


def test_every_class_but_trains_occurs_in_a_few_drives() -> None:
    settings = GeneratorSettings(cities=5, sequences_per_city=2, frames_per_sequence=30, image_size=(128, 96))
    seen: set[int] = set()
    for city in range(5):
        for sequence in range(2):
            for frame in range(0, 30, 6):
                seen |= set(np.unique(render_frame(settings, city, sequence, frame).label_HW).tolist())
    assert {CITYSCAPES.train_names[i] for i in set(range(19)) - seen} <= {"train"}


def test_instances_agree_with_labels_and_are_numbered_by_class(frames: list[Frame]) -> None:
    for frame in frames:
        assert frame.instance_HW is not None
        ids = np.where(frame.instance_HW >= 1000, frame.instance_HW // 1000, frame.instance_HW)
        assert np.array_equal(CITYSCAPES.id_to_train_id[ids], frame.label_HW)
        countable = [c.label_id for c in CITYSCAPES.classes if c.has_instances]
        assert np.array_equal(np.isin(ids, countable), frame.instance_HW >= 1000)


def test_left_hand_traffic_occurs_among_cities() -> None:
    sides = {make_look(0, city, 0).drives_left for city in range(24)}
    assert sides == {True, False}


def test_dataset_reads_back_through_the_cityscapes_reader(tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    generate_dataset(tmp_path, TINY, progress=lambda *counts: done.append(counts))
    assert done == [(number, 6) for number in range(1, 7)]
    source = CityscapesFrames(tmp_path)
    check_frames(source)
    assert [ref.city for ref in source.refs] == ["aldheim"] * 3 + ["brockstad"] * 3
    read, rendered = source.load(source.refs[4]), render_frame(TINY, 1, 0, 1)
    assert read.key == rendered.key
    assert np.array_equal(read.image_HWC, rendered.image_HWC)
    assert np.array_equal(read.label_HW, rendered.label_HW)
    assert read.instance_HW is not None and rendered.instance_HW is not None
    assert np.array_equal(read.instance_HW, rendered.instance_HW)


def test_finished_dataset_is_used_again(tmp_path: Path) -> None:
    generate_dataset(tmp_path, TINY)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    done: list[tuple[int, int]] = []
    generate_dataset(str(tmp_path), TINY, progress=lambda *counts: done.append(counts))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert done == [(6, 6)]


def test_interrupted_dataset_is_completed_to_the_same_files(tmp_path: Path) -> None:
    generate_dataset(tmp_path / "whole", TINY)

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_dataset(tmp_path / "cut", TINY, progress=stop)
    (tmp_path / "cut/leftImg8bit/train/aldheim/aldheim_000000_000001_leftImg8bit.png").unlink()
    done: list[int] = []
    generate_dataset(tmp_path / "cut", TINY, progress=lambda count, total: done.append(count))
    assert done == [4, 5, 6]
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_several_workers_write_the_same_files(tmp_path: Path) -> None:
    settings = GeneratorSettings(cities=2, frames_per_sequence=9, image_size=(48, 32))
    generate_dataset(tmp_path / "one", settings)
    generate_dataset(tmp_path / "two", settings, workers=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_dataset_of_another_generator_version_is_refused(tmp_path: Path) -> None:
    generate_dataset(tmp_path, TINY)
    path = tmp_path / "generated.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 0}))
    with pytest.raises(GeneratorFolderError, match="version 0 instead of"):
        generate_dataset(tmp_path, TINY)


def test_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    generate_dataset(tmp_path, TINY)
    other = GeneratorSettings(**{**vars(TINY), "seed": 4})
    with pytest.raises(GeneratorFolderError, match=r"other settings \(seed 3 instead of 4\)"):
        generate_dataset(tmp_path, other)
    with pytest.raises(GeneratorFolderError, match="split 'train' instead of 'val'"):
        generate_dataset(tmp_path, TINY, split="val")


def test_folder_of_other_frames_is_refused(tmp_path: Path) -> None:
    (tmp_path / "leftImg8bit").mkdir()
    with pytest.raises(GeneratorFolderError, match=r"no generated\.json"):
        generate_dataset(tmp_path, TINY)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_folder_with_damaged_description_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "generated.json").write_text(text)
    with pytest.raises(GeneratorFolderError, match="damaged"):
        generate_dataset(tmp_path, TINY)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cities": 0}, "cities must be an integer from 1"),
        ({"frames_per_sequence": 1.5}, "frames_per_sequence must be an integer"),
        ({"seed": -1}, "seed must be an integer from 0"),
        ({"image_size": (256, 8)}, "image height must be an integer from 32"),
        ({"image_size": [256, 192]}, "image_size must be"),
        ({"image_size": 256}, "image_size must be"),
    ],
)
def test_settings_out_of_range_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GeneratorSettings(**changed)  # type: ignore[arg-type]


def test_frame_beyond_the_settings_is_refused() -> None:
    with pytest.raises(ValueError, match="frame must be from 0 to 2, got 3"):
        render_frame(TINY, 0, 0, 3)


@pytest.mark.parametrize(("argument", "value"), [("workers", 0), ("split", "training")])
def test_arguments_out_of_range_are_refused(tmp_path: Path, argument: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{argument} must be"):
        generate_dataset(tmp_path, TINY, **{argument: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(32, 32), (320, 40), (40, 200)])
def test_odd_image_sizes_are_rendered(size: tuple[int, int]) -> None:
    frame = render_frame(GeneratorSettings(cities=1, frames_per_sequence=1, image_size=size), 0, 0, 0)
    assert frame.image_HWC.shape == (size[1], size[0], 3)


def test_draws_keep_their_stream() -> None:
    draws = Draws(0, Purpose.CITY, 1, 2, 3)
    values = [draws.uniform() for _ in range(40)]
    reference = np.random.Philox(counter=[0, 3, 2, 1], key=[0, int(Purpose.CITY)]).random_raw(64)
    expected = [*(int(w) >> 11 for w in reference[:32][::-1]), *(int(w) >> 11 for w in reference[56:][::-1])]
    assert values == [word * 2.0**-53 for word in expected]


def test_polygon_is_cut_at_the_near_plane() -> None:
    square = [(0.0, 0.0, -1.0), (1.0, 0.0, -1.0), (1.0, 0.0, 3.0), (0.0, 0.0, 3.0)]
    assert sorted(clip_near(square, 1.0)) == sorted(
        [(0.0, 0.0, 1.0), (1.0, 0.0, 1.0), (1.0, 0.0, 3.0), (0.0, 0.0, 3.0)]
    )
    assert clip_near(square, 4.0) == []


def test_camera_projects_as_a_pinhole() -> None:
    camera = Camera(
        width=200,
        height=100,
        focal_px=100.0,
        centre_u=100.0,
        horizon_v=50.0,
        x=0.0,
        z=10.0,
        height_m=1.5,
        bend_per_m=0.0,
    )
    assert camera.project([(1.0, 1.5, 20.0)]) == [(110.0, 50.0)]
    assert camera.project([(0.0, 0.0, 15.0)]) == [(100.0, 80.0)]
    assert camera.project([(50.0, 0.0, 15.0)]) == []


def test_split_val_is_drawn_of_other_drives_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    settings = GeneratorSettings(cities=2, frames_per_sequence=2, image_size=(48, 32))
    generate_dataset(tmp_path, settings, val_frames=1)
    train, val = (CityscapesFrames(tmp_path, splits=[split]).refs for split in ("train", "val"))
    assert [(ref.city, ref.sequence) for ref in val] == [(ref.city, "000001") for ref in train[::2]]
    before = val[1].image_path.read_bytes()
    val[1].image_path.unlink()
    told: list[tuple[int, int]] = []
    generate_dataset(
        tmp_path, settings, val_frames=1, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(6, 6)] and val[1].image_path.read_bytes() == before
    with pytest.raises(GeneratorFolderError, match="val_frames 1 instead of 0"):
        generate_dataset(tmp_path, settings)
    with pytest.raises(SettingError, match="val_frames must be at least 0, and 0 with split val"):
        generate_dataset(tmp_path, settings, split="val", val_frames=1)
