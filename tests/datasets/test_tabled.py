"""Frames of one's own with a table of classes: `--dataset folder`."""

from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cloud_server.command import _config, _parse
from datasets.catalog import classes_of, find_dataset, label_space, open_dataset
from datasets.check import check_frames
from datasets.class_file import read_class_file, write_class_file
from datasets.divided import open_frames, owned_frames, split_keys
from datasets.frame import DatasetError
from datasets.labels import CITYSCAPES, VOID
from datasets.readers.class_draft import write_class_draft
from datasets.readers.class_table import read_class_table
from datasets.readers.folder import DatasetMissing
from datasets.yaml_files import YamlFault, load_yaml
from evaluation.ground_truth import open_ground_truth

ROAD = {"name": "road", "id": 3, "color": [128, 64, 128]}
CAR = {"name": "car", "id": 7, "color": [0, 0, 142]}
BUS = {"name": "bus", "id": 0, "color": [0, 60, 100], "category": "vehicle"}
TABLE: dict[str, Any] = {"name": "town", "classes": [ROAD, CAR, BUS], "ignore": [255]}
IDS_HW = np.array([[3, 7, 0, 255]] * 3, np.uint8)
TRAIN_IDS_HW = np.array([[0, 1, 2, VOID]] * 3, np.uint8)


def write_frame(root: Path, place: str, label: np.ndarray = IDS_HW, suffix: str = ".png") -> None:
    """An image of noise and its label, an RGB or grey picture."""
    for kind, name, pixels in (
        ("images", place + suffix, np.full((*label.shape[:2], 3), 90, np.uint8)),
        ("labels", place + ".png", label[:, :, ::-1] if label.ndim == 3 else label),
    ):
        path = root / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), pixels)


def write_table(root: Path, table: Any = TABLE, **changes: Any) -> Path:
    path = root / "dataset.yaml"
    path.write_text(yaml.safe_dump({**table, **changes} if isinstance(table, dict) else table))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four frames in a plain folder, in a city, in a city's sequence."""
    write_table(tmp_path)
    write_frame(tmp_path, "first")
    write_frame(tmp_path, "north/north_2", suffix=".JPG")
    write_frame(tmp_path, "north/10")
    write_frame(tmp_path, "south/dusk/1", suffix=".jpeg")
    return tmp_path


def test_folders_are_cities_and_sequences(root: Path) -> None:
    source = open_dataset("folder", root)
    assert [(ref.key, ref.city, ref.sequence, ref.frame_id) for ref in source.refs] == [
        ("all_first", "all", "all", "first"),
        ("north_2", "north", "north", "2"),
        ("north_10", "north", "north", "10"),
        ("south_dusk_1", "south", "dusk", "1"),
    ]
    for ref in source.refs:
        frame = source.load(ref)
        assert frame.key == ref.key
        np.testing.assert_array_equal(frame.label_HW, TRAIN_IDS_HW)


def test_divided_folder_is_read_whole(tmp_path: Path) -> None:
    write_table(tmp_path)
    for split in ("train", "val"):
        write_frame(tmp_path / split, f"north/{split}1")
    assert [ref.key for ref in open_dataset("folder", tmp_path).refs] == ["north_train1", "north_val1"]
    divided = open_frames("folder", tmp_path, "val")
    assert [ref.key for ref in owned_frames(divided).refs] == ["north_train1"]
    assert split_keys(divided) == ("north_val1",)
    (tmp_path / "other").mkdir()
    write_table(tmp_path / "other", classes=[ROAD, CAR])
    write_frame(tmp_path / "other", "north/other1", np.full((3, 4), 3, np.uint8))
    with pytest.raises(DatasetError, match="test split has the classes road, car, the frames to train on"):
        open_frames("folder", tmp_path, str(tmp_path / "other"))
    write_frame(tmp_path / "test", "north/val1")
    with pytest.raises(DatasetError, match=r"two frames of one name: .*val/images.* and .*test/images"):
        open_dataset("folder", tmp_path)


@pytest.mark.parametrize("kind", ["ids", "colors"])
def test_table_is_drawn_up_from_the_labels(tmp_path: Path, kind: str) -> None:
    """What is drawn up is read again, with every value that the labels hold."""
    label = np.array([[3, 3, 7], [3, 0, 255]], np.uint8)
    if kind == "colors":
        colours = {3: (1, 2, 3), 7: (4, 5, 6), 0: (9, 9, 9), 255: (0, 0, 0)}
        label = np.array([[colours[value] for value in row] for row in label.tolist()], np.uint8)
    write_frame(tmp_path, "north/1", label)
    path, classes = write_class_draft(tmp_path)
    assert classes == 3
    source = open_dataset("folder", tmp_path)
    label_HW = source.load(source.refs[0]).label_HW
    assert sorted(np.bincount(label_HW[label_HW != VOID])) == [1, 1, 3]
    with pytest.raises(DatasetError, match="is there already; edit it"):
        write_class_draft(tmp_path)
    path.unlink()
    write_frame(tmp_path, "north/2", np.arange(256, dtype=np.uint8).reshape(2, 128))
    with pytest.raises(DatasetError, match=r"over 100 (ids|colors)"):
        write_class_draft(tmp_path)
    with pytest.raises(DatasetError, match=r"no labels in .*elsewhere: expected labels/"):
        write_class_draft(tmp_path / "elsewhere")


def test_classes_come_from_the_table(root: Path) -> None:
    classes = classes_of("folder", root)
    assert classes is not None and classes == label_space(str(root / "dataset.yaml"))
    assert classes.train_names == ("road", "car", "bus")
    assert [(c.name, c.label_id, c.train_id, c.category) for c in classes.classes] == [
        ("road", 3, 0, "road"),
        ("car", 7, 1, "car"),
        ("bus", 0, 2, "vehicle"),
        ("void", 255, VOID, "void"),
    ]
    assert classes.palette_rgb[1].tolist() == CAR["color"]
    truth = open_ground_truth(root, None)
    assert truth.label_space == classes
    np.testing.assert_array_equal(truth.load("north_2").ids_HW, IDS_HW)


def test_other_classes_have_another_name(root: Path) -> None:
    name = classes_of("folder", root).name  # type: ignore[union-attr]
    assert name.startswith("town-")
    write_table(root, classes=[ROAD, {**CAR, "id": 8}, BUS])
    assert classes_of("folder", root).name not in (name, None)  # type: ignore[union-attr]


def test_colours_stand_for_classes(tmp_path: Path) -> None:
    plain = [{key: value for key, value in c.items() if key != "id"} for c in (ROAD, CAR, BUS)]
    write_table(tmp_path, classes=plain, labels="colors", ignore=[[0, 0, 0], [9, 9, 9]])
    colours = np.array([[ROAD["color"], CAR["color"], BUS["color"], [9, 9, 9]]] * 3, np.uint8)
    write_frame(tmp_path, "a", colours)
    source = open_dataset("folder", tmp_path)
    np.testing.assert_array_equal(source.load_label(source.refs[0]), TRAIN_IDS_HW)
    assert source.label_space.to_ids(TRAIN_IDS_HW)[0].tolist() == [0, 1, 2, 255]
    colours[0, 0] = 1
    write_frame(tmp_path, "b", colours)
    with pytest.raises(DatasetError, match=r"labels/b.png: 1 pixels of no town colour, such as \(1, 1, 1\)"):
        check_frames(source := open_dataset("folder", tmp_path), source.refs)


def test_class_that_is_ignored_is_void(root: Path) -> None:
    write_table(root, ignore=[0, 255])
    classes = classes_of("folder", root)
    assert classes is not None and classes.train_names == ("road", "car")
    assert classes.id_to_train_id[[0, 255]].tolist() == [VOID, VOID]


def test_id_that_the_table_lacks_is_named_with_its_file(root: Path) -> None:
    write_frame(root, "north/bad", np.array([[3, 9, 200]], np.uint8))
    with pytest.raises(
        DatasetError, match=r"labels/north/bad.png: holds the ids 9, 200, which .*dataset.yaml"
    ):
        check_frames(open_dataset("folder", root))


def test_frames_that_do_not_fit_are_named(root: Path) -> None:
    cv2.imwrite(str(root / "labels" / "first.png"), IDS_HW[:, :2])
    with pytest.raises(DatasetError, match=r"labels/first.png: 2x3 pixels, but its image has 4x3"):
        check_frames(open_dataset("folder", root))
    (root / "labels" / "first.png").unlink()
    write_frame(root, "a/b/c/deep")
    write_frame(root, "north/spaced name")
    write_frame(root, "north/10", suffix=".jpg")
    with pytest.raises(DatasetError) as refusal:
        open_dataset("folder", root)
    for words in (
        "image without label: ", "deeper than <city>/<sequence>/", "two files of one name", "'-': ", "faults"
    ):  # fmt: skip
        assert words in str(refusal.value)


def test_folder_without_table_or_frames_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetMissing,
        match=r"expected dataset.yaml, images/ and labels/ in it; .*`blackfleet dataset describe DIR`",
    ):
        open_dataset("folder", tmp_path)
    write_table(tmp_path)
    with pytest.raises(DatasetError, match="neither images/ and labels/ nor train, val, test"):
        open_dataset("folder", tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(DatasetError, match=r"missing folder: .*labels"):
        open_dataset("folder", tmp_path)
    (tmp_path / "labels").mkdir()
    with pytest.raises(DatasetError, match="no frames"):
        open_dataset("folder", tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": [ROAD, {**CAR, "id": 3}]}, r"classes\[0\] \(road\) and classes\[1\] \(car\) .* id, 3"),
        ({"classes": [ROAD, {**CAR, "name": "road"}]}, "the same name, 'road'"),
        ({"classes": [ROAD, {**CAR, "color": ROAD["color"]}]}, r"the same color, \[128, 64, 128\]"),
        ({"classes": [ROAD, {**CAR, "id": "7"}]}, r"classes\[1\].id \(car\): expected `int"),
        ({"classes": [ROAD, {**CAR, "color": [0, 0]}]}, r"classes\[1\].color \(car\): expected `array`"),
        ({"classes": [ROAD, {**CAR, "color": [0, 0, 256]}]}, r"the color of car .* got \[0, 0, 256\]"),
        ({"classes": [ROAD, {**CAR, "id": 256}]}, "the id of car must be from 0 to 255.* got 256"),
        ({"classes": [ROAD, {**CAR, "colour": 1}]}, "unknown field `colour`"),
        ({"classes": [ROAD, {"name": "car", "color": [0, 0, 1]}]}, "class car has no id"),
        ({"classes": [ROAD, {"name": "car"}]}, r"classes\[1\] \(car\): .*`color`"),
        ({"classes": [ROAD, {**CAR, "name": False}]}, r"classes\[1\].name: expected `str`, got `bool`"),
        ({"classes": [ROAD]}, "2 to 253 classes that are not ignored are needed, got 1"),
        ({"classes": [ROAD, CAR], "ignore": [3]}, "2 to 253 classes that are not ignored"),
        ({"ignore": []}, "ignore is empty"),
        ({"ignore": [[0, 0, 0]]}, r"ignore must hold ids.*\[0, 0, 0\]"),
        ({"ignore": [-1]}, "an id of ignore must be from 0 to 255"),
        ({"labels": "colors"}, "ignore must hold colours.*got 255"),
        ({"labels": "polygons"}, "labels: invalid enum value 'polygons'"),
        ({"name": "a town"}, "name must be made of letters"),
        ({"classes": None}, "classes: expected `array`"),
    ],
    ids=str,
)
def test_table_that_contradicts_itself_is_refused(root: Path, changes: dict[str, Any], words: str) -> None:
    path = write_table(root, **changes)
    with pytest.raises(DatasetError, match=f"^{path}: .*{words}") as refusal:
        open_dataset("folder", root)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("classes: [", "is not YAML"),
        ("", "a table of classes is needed: expected `object`, got `null`"),
        ("- road", "a table of classes is needed"),
        ("classes: []\nclasses: []", "has the key 'classes' twice, in lines 1 and 2"),
    ],
)
def test_file_that_is_no_table_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "dataset.yaml"
    path.write_text(text)
    with pytest.raises(DatasetError, match=words):
        read_class_table(path)


_COLOURS = st.tuples(*[st.integers(-1, 256)] * 3)
_CLASSES = st.fixed_dictionaries(
    {"name": st.sampled_from("abcde"), "color": _COLOURS}, optional={"id": st.integers(-1, 256)}
)
_TABLES = st.fixed_dictionaries(
    {"classes": st.lists(_CLASSES, max_size=5)},
    optional={
        "labels": st.sampled_from(["ids", "colors"]),
        "ignore": st.lists(st.one_of(st.integers(-1, 256), _COLOURS), max_size=3),
        "name": st.text(max_size=3),
    },
)
_ANY = st.recursive(st.one_of(st.none(), st.integers(), st.text()), lambda inner: st.lists(inner, max_size=3))


@given(table=st.one_of(_TABLES, _ANY, st.dictionaries(st.sampled_from(["classes", "ignore"]), _ANY)))
def test_any_table_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, table: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "dataset.yaml"
    path.write_text(json.dumps(table))
    try:
        classes = read_class_table(path).label_space
    except DatasetError as refusal:
        assert "\n" not in str(refusal) and str(path) in str(refusal)
        return
    kept = path.with_name("classes.json")
    write_class_file(kept, classes)
    assert read_class_file(kept) == classes
    trained = np.arange(classes.num_classes, dtype=np.uint8)[None]
    np.testing.assert_array_equal(classes.to_train_ids(classes.to_ids(trained)), trained)


def test_damaged_classes_of_a_run_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    with pytest.raises(DatasetError, match=r"can't read the classes .*No such file"):
        label_space("classes.json", tmp_path)
    for content in (b"{", b"[]", b'{"name": "a", "classes": []}', b"\xff"):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=f"{path} holds no classes as a run keeps them"):
            read_class_file(path)
    write_class_file(path, CITYSCAPES)
    assert read_class_file(path) == CITYSCAPES


def test_without_pyyaml_a_table_in_json_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "yaml":
            raise ImportError(name)
        return found(name, *rest, **more)

    classes = classes_of("folder", root)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DatasetError, match=r"dataset.yaml can't be read without PyYAML: install pyyaml, or"):
        open_dataset("folder", root)
    (root / "dataset.yaml").write_text(json.dumps(TABLE))
    assert classes_of("folder", root) == classes


def test_cloud_by_hand_takes_the_table(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    given_options = ["--run-dir=run", "--fleet=f", "--vehicles=a", "--label-space=dataset.yaml"]
    config = _config(_parse(given_options))
    assert config.dataset == "folder"
    monkeypatch.chdir("/")
    assert label_space(config.label_space, root / "run") == classes_of("folder", root)


def test_entry_reads_its_classes(root: Path) -> None:
    entry = find_dataset("folder")
    assert entry.is_labelled and entry.label_space is None
    assert entry.open_ground_truth(root).label_space == entry.classes(root)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_table_as_json_is_read_without_pyyaml_and_just_as_strictly(
    mark: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert load_yaml(mark + b'{"a": {"b": 1}}') == {"a": {"b": 1}}
    with pytest.raises(YamlFault, match="has the key 'b' twice"):
        load_yaml(mark + b'{"a": {"b": 1, "b": 2}}')
