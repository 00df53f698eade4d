"""A teacher's labels: right, only where it is sure, made once, beside frames as a vehicle reads them."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from test_predict import CARD, expected_ids, model_bytes, picture, read_ids, write_picture, write_video

from datasets.label_files import label_beside, origin, read_words
from datasets.labels import CAMVID, VOID
from edge_client.source.folder import GrowingFolder
from edge_client.source.ring import Ring
from edge_client.source.snapshot import SnapshotFrames, take_snapshot
from fleet.model.labelling import Labelling, label
from fleet.model.likely import as_logits, likely_classes
from fleet.model.teacher import Teacher, TeacherOptions
from protocol.errors import Mistake

OPTIONS = TeacherOptions()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "teacher.onnx"
    path.write_bytes(model_bytes())
    return path


def foreign(
    path: Path,
    *,
    kind: int = TensorProto.FLOAT,
    first: bool = True,
    classes: int = 11,
    ids: bool = False,
    size: Any = (16, 24),
) -> Path:
    """Somebody's model: cells of 4x4 pixels, their classes random linear functions of their mean colour."""
    weight = np.random.default_rng(1).standard_normal((classes, 3, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["x"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["first"], perm=[0, 1, 2, 3] if first else [0, 3, 1, 2]),
        helper.make_node("AveragePool", ["first"], ["cells"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Conv", ["cells", "weight"], ["scores"]),
    ]
    out, kinds = "scores", TensorProto.FLOAT
    if ids:
        nodes.append(helper.make_node("ArgMax", ["scores"], ["ids"], axis=1, keepdims=0))
        out, kinds = "ids", TensorProto.INT64
    elif not first:
        nodes.append(helper.make_node("Transpose", ["scores"], ["last"], perm=[0, 2, 3, 1]))
        out = "last"
    shape = ["B", 3, *size] if first else ["B", *size, 3]
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(out, kinds, None)],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def test_probabilities_are_those_of_softmax_and_add_up_in_a_table() -> None:
    logits_Khw = np.random.default_rng(0).standard_normal((5, 3, 4)).astype(np.float32) * 3
    p_Khw = np.exp(logits_Khw) / np.exp(logits_Khw).sum(axis=0)
    label_HW, sure_HW = likely_classes(logits_Khw, np.arange(5, dtype=np.uint8), (3, 4))
    np.testing.assert_array_equal(label_HW, p_Khw.argmax(axis=0))
    np.testing.assert_allclose(sure_HW, p_Khw.max(axis=0), rtol=1e-5)
    table_K = np.array([7, 7, VOID, 2, 2], np.uint8)
    label_HW, sure_HW = likely_classes(logits_Khw, table_K, (3, 4))
    sums = np.stack([p_Khw[:2].sum(axis=0), p_Khw[2], p_Khw[3:].sum(axis=0)])
    np.testing.assert_array_equal(label_HW, np.array([7, VOID, 2])[sums.argmax(axis=0)])
    np.testing.assert_allclose(sure_HW, sums.max(axis=0), rtol=1e-5)
    np.testing.assert_allclose(
        likely_classes(as_logits(p_Khw.astype(np.float32)), table_K, (3, 4))[1], sure_HW, rtol=1e-4
    )


def test_labels_lie_beside_frames_where_the_model_is_sure_and_are_made_once(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "drives"
    for number in range(3):
        write_picture(folder / "a" / f"{number}.png", picture(number))
    people_HW = np.full((40, 60), 3, np.uint8)
    cv2.imwrite(str(label_beside(folder / "a" / "2.png")), people_HW)
    asked = Labelling(source=folder, confidence=0.6)
    label(model, OPTIONS, asked)
    assert "2 frames labelled by teacher.onnx" in (told := capsys.readouterr().out)
    assert "1 frames have labels that name no model: these stay" in told
    np.testing.assert_array_equal(read_ids(label_beside(folder / "a" / "2.png")), people_HW)
    path = label_beside(folder / "a" / "0.png")
    ids_HW = read_ids(path)
    is_void_HW = ids_HW == 11
    assert 0 < is_void_HW.mean() < 1
    np.testing.assert_array_equal(ids_HW[~is_void_HW], expected_ids(picture(0))[~is_void_HW])
    manifest = (folder / "labels.json").read_bytes()
    assert json.loads(manifest)["void_by_frame"]["a/0"] == pytest.approx(is_void_HW.mean(), abs=1e-5)

    stamps = {file: file.stat().st_mtime_ns for file in folder.rglob("*_labelIds.png")}
    label(model, OPTIONS, asked)
    assert "2 frames labelled, 2 of them before" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:300])  # as a copy that was cut off
    label(model, OPTIONS, asked)
    np.testing.assert_array_equal(read_ids(path), ids_HW)
    assert {file: file.stat().st_mtime_ns for file in stamps if file != path} == {
        file: stamp for file, stamp in stamps.items() if file != path
    }
    assert (folder / "labels.json").read_bytes() == manifest

    label(model, OPTIONS, Labelling(source=folder, confidence=0))
    assert "2 frames have labels by another model or other settings" in capsys.readouterr().out
    label(model, OPTIONS, Labelling(source=folder, confidence=0, replaces=True))
    np.testing.assert_array_equal(read_ids(path), expected_ids(picture(0)))
    assert (read_words(path) or {})["confidence"] == 0


def test_vehicle_takes_labels_that_come_later_at_its_next_snapshot(model: Path, tmp_path: Path) -> None:
    """From a folder that it watches, here of a video's frames, and beside the frames of its ring."""
    write_video(tmp_path / "drive.mp4", 4)
    label(model, OPTIONS, Labelling(source=tmp_path / "drive.mp4", output=tmp_path / "out", confidence=0.5))
    ring = Ring(tmp_path / "recording" / "frames", 10**7)
    frames = GrowingFolder(tmp_path / "out", ring, CAMVID, tmp_path / "taken.json")
    frames.scan(threading.Event())
    manifest = take_snapshot(ring, most=10, fleet="f", source="s")
    assert len(manifest.frames) == 4 and all(frame.label_digest for frame in manifest.frames)
    taken = SnapshotFrames(ring.folder, CAMVID, manifest)
    assert {origin(ref.label_path) for ref in taken.refs} == {
        f"teacher {Teacher(model, OPTIONS).sha256[:16]}"
    }
    for ref in taken.refs:
        assert ref.label_path is not None
        ref.label_path.unlink()
    assert not any(frame.label_digest for frame in take_snapshot(ring, most=10, fleet="f", source="s").frames)
    label(model, OPTIONS, Labelling(source=tmp_path / "recording"))
    again = take_snapshot(ring, most=10, fleet="f", source="s")
    assert all(frame.label_digest for frame in again.frames)
    assert SnapshotFrames(ring.folder, CAMVID, again).labelled == 4


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.UINT8])
def test_model_of_somebody_else_labels_like_ours(first: bool, kind: int, tmp_path: Path) -> None:
    path = foreign(tmp_path / "their.onnx", first=first, kind=kind)
    pixels = "raw" if kind == TensorProto.FLOAT else None
    teacher = Teacher(path, TeacherOptions(classes="camvid", pixels=pixels))
    label_HW, sure_HW = teacher.label(picture(0))
    assert sure_HW is not None
    assert (CAMVID.to_ids(label_HW) == expected_ids(picture(0))).mean() > 0.999


def test_ids_without_scores_and_a_table_of_classes(tmp_path: Path) -> None:
    table = tmp_path / "table.yaml"
    table.write_text("0: road\n1: 4\n2: void\n3: sky\n")
    path = foreign(tmp_path / "ids.onnx", ids=True, classes=6, size=("h", "w"))
    options = TeacherOptions(classes="camvid", class_map=table, pixels="raw", image_size=(24, 16))
    ids_HW, sure_HW = Teacher(path, options).label(picture(0))
    assert sure_HW is None and set(np.unique(ids_HW)) <= {3, 4, 0, VOID}
    scores = foreign(tmp_path / "scores.onnx", classes=6, size=("h", "w"))
    assert Teacher(scores, options).gives_scores
    write_picture(tmp_path / "frames" / "a.png", picture(0))
    with pytest.raises(Mistake, match=r"gives classes without scores.*leave --confidence 0.9 out"):
        label(path, options, Labelling(source=tmp_path / "frames", confidence=0.9))
    label(path, options, Labelling(source=tmp_path / "frames"))
    assert label_beside(tmp_path / "frames" / "a.png").exists()


def test_comparison_with_truth_is_of_what_would_be_labelled(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_picture(tmp_path / "data" / "train" / "s_0.png", picture(0))
    (tmp_path / "data" / "trainannot").mkdir()
    cv2.imwrite(str(tmp_path / "data" / "trainannot" / "s_0.png"), expected_ids(picture(0)))
    label(model, OPTIONS, Labelling(source=tmp_path / "data", dataset="camvid", against=True, confidence=0.7))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:2] for row in rows] == [[c, "1.0000"] for c in ("0", "0.5", "0.7", "0.9")]
    void = [float(row[4]) for row in rows]
    assert void[0] == 0 and void == sorted(void) and 0 < void[2] < void[3]
    assert not list(tmp_path.rglob("*_labelIds.png"))


REFUSED: list[tuple[dict[str, Any], TeacherOptions, str]] = [
    ({}, TeacherOptions(), "doesn't say what its classes are; say it: --classes"),
    ({}, TeacherOptions(classes="camvid"), "nothing says how they are scaled: --pixels raw, unit"),
    ({}, TeacherOptions(classes="camvid", pixels="half"), "--pixels must be raw, .* got 'half'"),
    (
        {"classes": 5},
        TeacherOptions(classes="camvid", pixels="raw"),
        "expected one output with scores of 11 cl",
    ),
    ({}, TeacherOptions(classes="camvid", pixels="raw", output="x"), "has no output 'x', it has scores"),
    ({}, TeacherOptions(classes="camvid", pixels="raw", image_size=(8, 8)), "takes pictures of 24x16 pixels"),
    (
        {"size": ("h", "w")},
        TeacherOptions(classes="camvid", pixels="raw"),
        "leaves the size of pictures open",
    ),
    ({"kind": TensorProto.DOUBLE}, TeacherOptions(classes="camvid"), "expected a picture: uint8, float or"),
    ({"kind": TensorProto.UINT8}, TeacherOptions(classes="camvid", pixels="unit"), "leave --pixels unit out"),
]


@pytest.mark.parametrize(("changes", "options", "reason"), REFUSED)
def test_model_that_does_not_fit_is_refused_in_one_line(
    changes: dict[str, Any], options: TeacherOptions, reason: str, tmp_path: Path
) -> None:
    path = foreign(tmp_path / "their.onnx", **changes)
    with pytest.raises(Mistake, match=reason) as raised:
        Teacher(path, options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0: tram\n", "camvid has no class 'tram'; expected a label id, void, or one of sky"),
        ("300: road\n", "ids must be 0 to 255, got 300"),
        ("0: 77\n", "has no class 77"),
        ("- road\n", "holds no table"),
        ("0: void\n", "makes all of the teacher's classes void"),
        ("0: [", "is not YAML"),
    ],
)
def test_table_that_does_not_fit_is_refused(text: str, reason: str, model: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.yaml"
    table.write_text(text)
    with pytest.raises(Mistake, match=reason):
        Teacher(model, TeacherOptions(class_map=table))


def test_part_of_a_model_and_sources_that_need_a_folder_are_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "part.onnx").write_bytes(model_bytes(replace(CARD, part="encoder")))
    with pytest.raises(Mistake, match="is the encoder alone"):
        Teacher(tmp_path / "part.onnx", OPTIONS)
    write_video(tmp_path / "drive.mp4", 2)
    with pytest.raises(Mistake, match="a video's frames need a folder to lie in beside their labels: -o DIR"):
        label(model, OPTIONS, Labelling(source=tmp_path / "drive.mp4"))
    with pytest.raises(Mistake, match="--confidence must be 0 to 1, got 90"):
        label(model, OPTIONS, Labelling(source=tmp_path, confidence=90))
