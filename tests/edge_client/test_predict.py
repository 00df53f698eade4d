"""Predicting with a small model made by hand: pictures, folders, videos, data sets, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from datasets.frame import resize_image
from datasets.labels import CAMVID
from edge_client.encoder.sessions import CPU, open_session
from edge_client.predict.card import IMAGE, LOGITS, ModelCard
from edge_client.predict.command import main
from edge_client.predict.model import Model
from evaluation.likeliest import likeliest
from fleet.model.graphs import with_metadata

SIZE_WH = (24, 16)
CARD = ModelCard(
    part="model",
    label_space=CAMVID,
    dataset="camvid",
    image_size=SIZE_WH,
    pixel_mean=(0, 0, 0),
    pixel_std=(1, 1, 1),
    coding_bits=None,
    run="by-hand",
    vehicle="car-01",
    algorithm="blackfleet",
    rounds=1,
    seed=0,
    encoder="none",
    network="none",
    theta_sha256="0" * 64,
    network_sha256="0" * 64,
    version="0",
)


def model_bytes(card: ModelCard = CARD, *, logits: bool = True) -> bytes:
    """Cells of 4x4 pixels whose classes are random linear functions of their mean colour."""
    width, height = SIZE_WH
    weight = np.random.default_rng(1).standard_normal((11, 3, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", [IMAGE], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["first"], ["cells"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Conv", ["cells", "weight"], [LOGITS]),
        helper.make_node("ArgMax", [LOGITS], ["classes"], axis=1, keepdims=0),
        helper.make_node("Cast", ["classes"], ["ids_Bhw"], to=TensorProto.UINT8),
    ]
    outputs = [helper.make_tensor_value_info("ids_Bhw", TensorProto.UINT8, ["B", height // 4, width // 4])]
    if logits:
        shape = ["B", 11, height // 4, width // 4]
        outputs.append(helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, shape))
    graph = helper.make_graph(
        nodes,
        "by-hand",
        [helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, ["B", height, width, 3])],
        outputs,
        [onnx.numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return with_metadata(model, card.properties())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(model_bytes())
    return path


def picture(seed: int, size_WH: tuple[int, int] = (60, 40)) -> np.ndarray:
    """RGB blotches."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    return np.asarray(cv2.resize(small, size_WH, interpolation=cv2.INTER_CUBIC))


def write_picture(path: Path, image_HWC: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image_HWC[:, :, ::-1])


def write_video(path: Path, frames: int) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 12.0, (60, 40))
    for number in range(frames):
        writer.write(picture(number)[:, :, ::-1].copy())
    writer.release()


def expected_ids(image_HWC: np.ndarray) -> np.ndarray:
    """Resized as in training, enlarged as in evaluation, with the ids of label files."""
    session = open_session(model_bytes(), CPU, 1)
    logits = session.run([LOGITS], {IMAGE: resize_image(image_HWC, *SIZE_WH)[None]})[0]
    height, width = image_HWC.shape[:2]
    return CAMVID.to_ids(likeliest(logits[0], (height, width)))


def read_ids(path: Path) -> np.ndarray:
    ids_HW = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert ids_HW is not None, path
    return ids_HW


def test_pictures_of_any_size_and_name_become_label_images_and_overlays(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "drives"
    sizes = {"frame 1 (day).png": (60, 40), "night/2.png": (24, 16), "night/10.png": (15, 9)}
    for number, (name, size_WH) in enumerate(sizes.items()):
        write_picture(folder / name, picture(number, size_WH))
    assert main([str(model), str(folder), "-o", str(tmp_path / "out")]) == 0
    for number, (name, size_WH) in enumerate(sizes.items()):
        name = name.removesuffix(".png")
        ids_HW = read_ids(tmp_path / "out" / "labels" / f"{name}_pred_labelIds.png")
        np.testing.assert_array_equal(ids_HW, expected_ids(picture(number, size_WH)))
        overlay = cv2.imread(str(tmp_path / "out" / "overlays" / f"{name}.png"))
        assert overlay.shape == (*size_WH[::-1], 3)
    assert "3 frames in" in capsys.readouterr().out
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_video_becomes_an_overlay_video(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "drive.mp4", 7)
    out = tmp_path / "new" / "seen.mp4"
    assert main([str(model), str(tmp_path / "drive.mp4"), "-o", str(out), "--limit", "5", "--labels"]) == 0
    capture = cv2.VideoCapture(str(out))
    shapes = []
    while (read := capture.read())[0]:
        shapes.append(read[1].shape)
    assert shapes == [(40, 60, 3)] * 5
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(12)
    labels = sorted(path.name for path in (tmp_path / "new" / "seen" / "labels").iterdir())
    assert labels == [f"drive_{number:06d}_pred_labelIds.png" for number in range(5)]
    assert sorted(path.name for path in out.parent.iterdir()) == ["seen", "seen.mp4"]
    assert "frames a second" in capsys.readouterr().out


def test_data_set_is_scored_and_only_its_first_frames_where_wanted(model: Path, tmp_path: Path) -> None:
    """Labels that are the predictions of most frames: all right, but for the void and one frame."""
    for number in range(3):
        image_HWC = picture(number)
        ids_HW = expected_ids(image_HWC)
        ids_HW[:5] = 11
        if number == 2:
            ids_HW[5:] = (ids_HW[5:] + 1) % 11
        write_picture(tmp_path / "data" / "train" / f"s_{number}.png", image_HWC)
        (tmp_path / "data" / "trainannot").mkdir(exist_ok=True)
        assert cv2.imwrite(str(tmp_path / "data" / "trainannot" / f"s_{number}.png"), ids_HW)
    arguments = [str(model), str(tmp_path / "data"), "--dataset", "camvid", "-o", str(tmp_path / "out")]
    scores: dict[str, Any] = {}
    for limit in (2, 3):
        assert main([*arguments, "--limit", str(limit), "--no-overlays"]) == 0
        scores[str(limit)] = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert scores["2"]["mean_iou"] == 1 and scores["2"]["pixels"] == 2 * 35 * 60
    assert scores["3"]["mean_iou"] < 1 and scores["3"]["frames"] == 3
    assert not (tmp_path / "out" / "overlays").exists()
    assert (tmp_path / "out" / "labels" / "s_0_pred_labelIds.png").exists()


def test_model_without_logits_is_enlarged_by_nearest_pixel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.onnx").write_bytes(model_bytes(logits=False))
    image_HWC = picture(4, (48, 32))
    with_ids = Model(tmp_path / "model.onnx")
    assert not with_ids.gives_logits
    logits = open_session(model_bytes(), CPU, 1).run(
        [LOGITS], {IMAGE: resize_image(image_HWC, *SIZE_WH)[None]}
    )
    ids_hw = logits[0][0].argmax(axis=0)
    np.testing.assert_array_equal(with_ids.predict(image_HWC), np.kron(ids_hw, np.ones((8, 8), np.uint8)))
    write_picture(tmp_path / "a.png", image_HWC)
    assert main([str(tmp_path / "model.onnx"), str(tmp_path / "a.png"), "-o", str(tmp_path / "out")]) == 0
    assert "gives no logits" in capsys.readouterr().err


def no_metadata(folder: Path) -> list[str]:
    bare = onnx.load_from_string(model_bytes())
    del bare.metadata_props[:]
    onnx.save(bare, folder / "bare.onnx")
    return [str(folder / "bare.onnx"), str(folder)]


def part_alone(folder: Path) -> list[str]:
    (folder / "part.onnx").write_bytes(model_bytes(replace(CARD, part="encoder")))
    return [str(folder / "part.onnx"), str(folder)]


def no_onnx(folder: Path) -> list[str]:
    (folder / "text.onnx").write_text("not a model")
    return [str(folder / "text.onnx"), str(folder)]


def broken_video(folder: Path) -> list[str]:
    (folder / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(200))
    return [str(folder / "model.onnx"), str(folder / "broken.mp4")]


def two_of_one_name(folder: Path) -> list[str]:
    for suffix in ("png", "jpg"):
        write_picture(folder / "twice" / f"a.{suffix}", picture(0))
    return [str(folder / "model.onnx"), str(folder / "twice")]


def damaged_picture(folder: Path) -> list[str]:
    write_picture(folder / "cut" / "a.png", picture(0))
    (folder / "cut" / "a.png").write_bytes((folder / "cut" / "a.png").read_bytes()[:60])
    return [str(folder / "model.onnx"), str(folder / "cut")]


def other_classes(folder: Path) -> list[str]:
    for part, kind in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
        path = folder / "city" / part / "train" / "a" / f"a_000000_000000_{kind}.png"
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), picture(0) if part == "leftImg8bit" else np.full((40, 60), 7, np.uint8))
        (folder / "city" / part / "val").mkdir()
    return [str(folder / "model.onnx"), str(folder / "city"), "--dataset", "cityscapes"]


def empty_folder(folder: Path) -> list[str]:
    (folder / "empty").mkdir()
    return [str(folder / "model.onnx"), str(folder / "empty")]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (no_metadata, "no model that can be used: it has no metadata of `blackfleet export`"),
        (part_alone, "is the encoder alone; give the whole model"),
        (no_onnx, "no ONNX model that ONNX Runtime"),
        (broken_video, "no video that OpenCV can decode"),
        (two_of_one_name, "two pictures of one name"),
        (damaged_picture, "not a readable image"),
        (
            other_classes,
            "knows the 11 classes of camvid, data set cityscapes has the 19 classes of cityscapes",
        ),
        (empty_folder, "no pictures in"),
        (lambda folder: [str(folder / "none.onnx"), str(folder)], "can't read the model"),
        (lambda folder: [str(folder / "model.onnx"), str(folder / "none")], "there is nothing at"),
        (
            lambda folder: [str(folder / "model.onnx"), str(folder), "--limit", "0"],
            "--limit must be at least 1",
        ),
        (
            lambda folder: [str(folder / "model.onnx"), str(folder), "--run", "r"],
            "name that, too (--dataset)",
        ),
    ],
)
def test_what_can_not_be_predicted_is_said_in_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: Any, reason: str
) -> None:
    assert main([*arguments(tmp_path), "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert reason in said and said.startswith("blackfleet: ") and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
