"""Models that runs leave: one ONNX of encoder and network, which predicts what the run did."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from fleet_fixtures import World
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from rich.console import Console

from cloud_server.training.losses import entropy
from datasets.labels import CAMVID
from edge_client.encoder.sessions import CPU, open_session
from edge_client.predict.card import FEATURES, IMAGE, LOGITS, ModelCard, ModelError
from evaluation.likeliest import likeliest, uncertainty
from fleet.cli.evaluate import evaluate_predictions
from fleet.errors import OperatorError
from fleet.export.errors import ExportError
from fleet.model.check import Differing, check_graphs, coded
from fleet.model.export import Exported, choose_vehicle, export_model, read_ended, test_frames
from fleet.model.graphs import encoder_model, whole_model
from fleet.model.served import read_served
from fleet.run.launch import launch
from fleet.scenario import DatasetPart, EncoderPart, Scenario
from protocol.plans.coding import Coding
from protocol.plans.federated import FederatedPlan
from protocol.plans.first_order import FirstOrder

ROOT = Path(__file__).resolve().parents[2]
QUIET = Console(quiet=True)
frames_of = test_frames
frames_of.__test__ = False  # type: ignore[attr-defined]  # by its name alone


def run(world: World, folder: Path, **changes: Any) -> Path:
    """A run of two vehicles that has ended."""
    scenario = Scenario(
        **{
            "vehicles": 2,
            "rounds": 1,
            "image_size": "64x48",
            "cores": 1,
            "broker": "memory",
            "encoder": EncoderPart(name="stride8-c4", mode="rebuild"),
            "dataset": DatasetPart(name="camvid", root=str(world.data_root)),
            "first_order": FirstOrder(epochs=2, batch_size=4, rate=5e-3),
            **changes,
        }
    )
    launch(scenario, folder, resume=False, console=QUIET)
    return folder


@dataclass(frozen=True)
class Example:
    run: Path
    exported: Exported


@pytest.fixture(scope="module")
def example(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> Example:
    """The default algorithm; the exported vehicle's features reach the network through a stem."""
    folder = tmp_path_factory.mktemp("model")
    mixed = run(tiny_world, folder / "run", encoders={"car-02": "stride4-c8"})
    exported = export_model(mixed, folder / "car.onnx", vehicle="car-01", int8=True, console=QUIET)
    return Example(mixed, exported)


def test_model_and_its_parts_give_the_run_s_predictions(example: Example) -> None:
    checked = example.exported.checked
    result = json.loads((example.run / "result.json").read_text())
    assert checked.frames == result["vehicles"]["car-01"]["frames_test"] > 0
    assert checked.run_miou == pytest.approx(result["vehicles"]["car-01"]["local_miou"], abs=1e-12)
    assert checked.parts_differ <= 1e-3
    assert checked.model_differs < 0.02  # eight bits of other ranges
    assert checked.model_miou == pytest.approx(checked.run_miou, abs=0.02)


def test_files_are_plain_onnx_that_says_what_it_is(example: Example) -> None:
    exported, cards = example.exported, {}
    for part in ("model", "encoder", "network"):
        path: Path = getattr(exported, part)
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
        assert not model.functions and {node.domain for node in model.graph.node} == {""}
        session = open_session(path.read_bytes(), CPU, 1)
        cards[part] = ModelCard.read(session.get_modelmeta().custom_metadata_map)
        assert cards[part].part == part
    card = cards["model"]
    assert card.label_space == CAMVID and card.image_size == (64, 48) and card.coding_bits == 8
    assert (card.vehicle, card.algorithm, card.seed, card.run) == ("car-01", "blackfleet", 0, "run")
    assert (card.encoder, card.network) == ("stride8-c4", "compact")
    assert all(len(digest) == 64 for digest in (card.theta_sha256, card.network_sha256))


def test_integers_cost_little_and_are_compared_with_the_floats(example: Example) -> None:
    exported = example.exported
    names = ["float32", "int8", "int8 encoder", "int8 network"]
    assert [variant.name for variant in exported.variants] == names
    floats = exported.variants[0]
    assert floats.miou == pytest.approx(exported.checked.model_miou, abs=1e-9)
    for variant in exported.variants:
        assert variant.miou == pytest.approx(floats.miou, abs=0.03) and variant.frame_ms > 0
    for part in ("model", "encoder", "network"):
        path: Path = getattr(exported, part)
        quantised = path.with_name(f"{path.stem}.int8.onnx")
        model = onnx.load(quantised)
        assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph.node}
        session = open_session(quantised.read_bytes(), CPU, 1)
        card = ModelCard.read(session.get_modelmeta().custom_metadata_map)
        assert (card.part, card.precision) == (part, "int8")
    assert quantised.stat().st_size < path.stat().st_size / 2  # of the network


def test_batch_of_a_model_is_free_and_frames_do_not_touch_each_other(example: Example) -> None:
    session = open_session(example.exported.model.read_bytes(), CPU, 1)
    image_BHWC = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), np.uint8)
    ids_Bhw, logits_BKhw = session.run(None, {IMAGE: image_BHWC})
    assert ids_Bhw.dtype == np.uint8 and ids_Bhw.shape == (3, 12, 16)
    assert logits_BKhw.shape == (3, 11, 12, 16)
    np.testing.assert_array_equal(ids_Bhw, logits_BKhw.argmax(axis=1))
    alone = session.run([LOGITS], {IMAGE: image_BHWC[1:2]})[0]
    np.testing.assert_allclose(alone[0], logits_BKhw[1], rtol=1e-3, atol=1e-4)


def test_graphs_that_predict_otherwise_are_refused(example: Example, tmp_path: Path) -> None:
    scenario, _ = read_ended(example.run)
    copy = tmp_path / "run"
    shutil.copytree(example.run, copy)
    spoilt = next((copy / "predictions" / "car-01").glob("*.png"))
    ids_HW = cv2.imread(str(spoilt), cv2.IMREAD_UNCHANGED)
    ids_HW[: len(ids_HW) // 2] = (ids_HW[: len(ids_HW) // 2] + 1) % 11
    cv2.imwrite(str(spoilt), ids_HW)
    served = read_served(scenario, copy, "car-01")
    graphs = {part: getattr(example.exported, part).read_bytes() for part in ("model", "encoder", "network")}
    with pytest.raises(ExportError, match=r"differ from the run's predictions .* % of the pixels, more than"):
        check_graphs(served, frames_of(scenario, copy, "car-01"), threads=1, **graphs)
    spoilt.unlink()
    with pytest.raises(ExportError, match=r"own prediction of .* can't be read"):
        check_graphs(served, frames_of(scenario, copy, "car-01"), threads=1, **graphs)


@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [
        ("blackfed-v2", {"coding": Coding(bits=3)}),
        ("split", {"conditions": {"car-02": "fog:2"}}),
        ("individual", {"coding": Coding(frame_bytes=180)}),
        ("fedavg", {"federated": FederatedPlan(statistics="local")}),
        ("centralized", {}),
    ],
)
def test_what_serves_a_vehicle_predicts_as_the_run_did(
    tiny_world: World, tmp_path: Path, algorithm: str, changes: dict[str, Any]
) -> None:
    """Whatever the algorithm keeps where: θ, network, statistics, and the codec between them."""
    folder = run(tiny_world, tmp_path / "run", algorithm=algorithm, **changes)
    scenario, _ = read_ended(folder)
    served = read_served(scenario, folder, "car-02")
    frames = frames_of(scenario, folder, "car-02")
    encoder = open_session(encoder_model(served.encoder).SerializeToString(), CPU, 1)
    differing = Differing()
    for first in range(0, len(frames.keys), served.frames_at_once):
        keys = frames.keys[first : first + served.frames_at_once]
        features = [encoder.run([FEATURES], {IMAGE: frames.image(key)[None]})[0] for key in keys]
        assert features[0].shape[1:] == served.feature_shape
        with torch.inference_mode():
            logits_BKhw = served.network(torch.from_numpy(coded(np.concatenate(features), served.coding)))
        for key, logits_Khw in zip(keys, logits_BKhw.numpy(), strict=True):
            expected_HW = frames.predicted(key)
            differing.add(likeliest(logits_Khw, expected_HW.shape), expected_HW)
    assert differing.share <= 1e-3


@settings(deadline=None, max_examples=40)
@given(bits=st.sampled_from([8, 6, 4, 3, 2]), seed=st.integers(0, 2**32 - 1), spread=st.floats(0, 6))
def test_rounding_in_the_graph_is_that_of_the_codec(bits: int, seed: int, spread: float) -> None:
    """Of a model whose features are its pixels, scaled, and whose logits are its features."""
    shape = ["B", 4, 5, 3]
    scales = np.array([10 ** (spread - 3), 1, 0], np.float32)
    encoder = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Cast", [IMAGE], ["pixels"], to=TensorProto.FLOAT),
                helper.make_node("Mul", ["pixels", "scales"], ["scaled"]),
                helper.make_node("Transpose", ["scaled"], [FEATURES], perm=[0, 3, 1, 2]),
            ],
            "encoder",
            [helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, shape)],
            [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["B", 3, 4, 5])],
            [onnx.numpy_helper.from_array(scales, "scales")],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )
    network = helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", [FEATURES], [LOGITS])],
            "network",
            [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["B", 3, 4, 5])],
            [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["B", 3, 4, 5])],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )
    model = whole_model(encoder, network, bits=bits, logits=True)
    image_BHWC = np.random.default_rng(seed).integers(0, 256, (2, 4, 5, 3), np.uint8)
    rounded = open_session(model.SerializeToString(), CPU, 1).run([LOGITS], {IMAGE: image_BHWC})[0]
    features_BCHW = np.ascontiguousarray((image_BHWC * scales).transpose(0, 3, 1, 2))
    expected = np.concatenate([coded(frame[None], Coding(bits=bits)) for frame in features_BCHW])
    np.testing.assert_allclose(rounded, expected, rtol=1e-6, atol=1e-6 * float(np.abs(expected).max()))


WITHOUT_OTHERS = """
import importlib.abc, runpy, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
missing = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Missing())
sys.argv[:2] = ["blackfleet"]
runpy.run_module("fleet.cli", run_name="__main__")
"""
OPERATORS = "msgspec,paho,typer,click,yaml,rich,torch,onnx,safetensors,jinja2,matplotlib"


def blackfleet(*arguments: str | Path, without: str = OPERATORS) -> subprocess.CompletedProcess[str]:
    """The command where these packages are missing."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_OTHERS, without, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_model_predicts_where_only_onnx_runtime_numpy_and_opencv_are(
    example: Example, tiny_world: World, tmp_path: Path
) -> None:
    """The run's test frames of the vehicle come out with the score of the run."""
    done = blackfleet(
        *("predict", example.exported.model, tiny_world.data_root, "--dataset", "camvid"),
        *("--run", example.run, "-o", tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    result = json.loads((example.run / "result.json").read_text())["vehicles"]["car-01"]
    assert scores["mean_iou"] == pytest.approx(example.exported.checked.model_miou, abs=1e-9)
    assert scores["mean_iou"] == pytest.approx(result["local_miou"], abs=1e-3)
    assert scores["frames"] == result["frames_test"]
    assert f"mIoU {scores['mean_iou']:.4f}" in done.stdout and "frames a second" in done.stdout
    evaluated = evaluate_predictions(tmp_path / "out" / "labels", tiny_world.data_root, dataset="camvid")
    assert evaluated.summary["classes"] == scores["classes"]


@pytest.mark.parametrize(
    ("arguments", "without", "code", "said"),
    [
        (["launch", "--vehicles", "2"], "typer", 2, "needs the operator's packages, and typer is missing"),
        (["predict", "m", "s"], "cv2", 2, "cv2 is missing: pip install 'blackfleet[vehicle]'"),
        (["--help"], "typer", 0, "Only the vehicle's part of blackfleet is installed"),
        ([], OPERATORS, 0, "usage: blackfleet predict"),
    ],
)
def test_command_says_in_a_line_what_is_not_installed(
    arguments: list[str], without: str, code: int, said: str
) -> None:
    done = blackfleet(*arguments, without=without)
    assert done.returncode == code
    assert said in done.stdout + done.stderr
    assert (done.stderr.count("\n") == 1) == (code == 2)


def test_default_vehicle_is_the_best_of_those_that_last() -> None:
    scores = {"car-01": 0.9, "car-02": None, "car-03": 0.5, "car-04": 0.5}
    result = {
        "vehicles": {vehicle: {"local_miou": score} for vehicle, score in scores.items()},
        "failed": {"car-01": "its disk is full"},
    }
    assert choose_vehicle(result, None) == "car-03"
    with pytest.raises(OperatorError, match="no vehicle 'car-09'; it has: car-02, car-03, car-04"):
        choose_vehicle(result, "car-09")
    with pytest.raises(OperatorError, match="car-01 has failed in this run: its disk is full"):
        choose_vehicle(result, "car-01")


def test_folder_without_a_run_that_has_ended_is_refused(example: Example, tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"holds no run .*scenario.yaml is missing"):
        read_ended(tmp_path)
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(example.run / "scenario.yaml", begun)
    with pytest.raises(OperatorError, match=r"has not ended .*--resume"):
        read_ended(begun)
    with pytest.raises(OperatorError, match="holds a comparison; name one of its runs: begun"):
        read_ended(tmp_path)
    with pytest.raises(OperatorError, match=r"ends in \.onnx, got model"):
        export_model(example.run, Path("model"), console=QUIET)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"blackfleet.format": "2"}, "of format 2, this version reads 1"),
        ({"blackfleet.classes": "[]"}, "damaged metadata"),
        ({"blackfleet.seed": "{"}, "damaged metadata"),
    ],
)
def test_card_that_is_damaged_or_of_another_version_is_refused(
    example: Example, change: dict[str, str], reason: str
) -> None:
    session = open_session(example.exported.model.read_bytes(), CPU, 1)
    properties = session.get_modelmeta().custom_metadata_map
    with pytest.raises(ModelError, match=reason):
        ModelCard.read({**properties, **change})
    with pytest.raises(ModelError, match="no metadata"):
        ModelCard.read({})


def test_likeliest_enlarges_as_torch_does() -> None:
    random = np.random.default_rng(3)
    logits_Khw = random.standard_normal((7, 12, 16)).astype(np.float32)
    for size_HW in ((12, 16), (60, 80), (45, 71), (9, 10)):
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(logits_Khw)[None], size=size_HW, mode="bilinear", align_corners=False
        )[0].argmax(dim=0)
        label_HW = likeliest(logits_Khw, size_HW)
        assert label_HW.dtype == np.uint8
        assert (label_HW != expected.numpy()).mean() <= 1e-3
    assert math.prod(label_HW.shape) == 90


def test_uncertainty_is_the_entropy_that_the_cloud_knows_as_a_share_of_the_greatest() -> None:
    logits_Khw = np.random.default_rng(0).normal(0, 3, (11, 6, 8)).astype(np.float32)
    expected = entropy(torch.from_numpy(logits_Khw)[None]).item() / math.log(11)
    assert uncertainty(logits_Khw) == pytest.approx(expected, rel=1e-5)
    assert uncertainty(np.zeros((11, 6, 8), np.float32)) == pytest.approx(1.0)
    sure_Khw = np.zeros((11, 6, 8), np.float32)
    sure_Khw[3] = 1e4
    assert uncertainty(sure_Khw) == 0
