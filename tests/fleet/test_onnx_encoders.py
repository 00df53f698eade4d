"""ONNX files of somebody else's as encoders: read, refused by name, and trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from fleet_fixtures import World
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from start_fixtures import changed, run, source_scenario_of

from cloud_server.config import ZerothOrderConfig
from edge_client.encoder.bundle import EncoderBundle, bundle_digest
from edge_client.encoder.runtime import Encoder
from edge_client.state import StateStore
from fleet.errors import OperatorError
from fleet.export.bundle import export_bundle
from fleet.export.encoders import architecture, folder_name
from fleet.export.onnx_encoder import OnnxEncoder, file_encoder, missing_way_back
from fleet.run.checks import check_runnable
from fleet.run.folder import with_absolute_paths
from fleet.scenario import EncoderPart, Scenario
from protocol.errors import SettingError
from protocol.plans.first_order import FirstOrder
from protocol.plans.spsa import SpsaPlan

SIZE = (64, 48)
Node = tuple[Any, ...]
FLOAT = TensorProto.FLOAT

NORMED: list[Node] = [
    ("Conv", ["image", "a.weight"], "a", {"strides": [4, 4], "pads": [1, 1, 1, 1]}),
    ("BatchNormalization", ["a", "n.scale", "n.bias", "n.mean", "n.var"], "n", {}),
    ("HardSwish", ["n"], "h", {}),
    ("Conv", ["h", "b.weight", "b.bias"], "features", {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
]
"""A convolution without bias, its BatchNorm, and another convolution: stride 8, 4 channels."""
SOFT: list[Node] = [(*NORMED[0],), ("Softplus", ["a"], "h", {}), NORMED[3]]
"""With an operator that nothing leads back through, though ONNX Runtime runs it."""


def make(
    path: Path,
    nodes: Sequence[Node] = NORMED,
    *,
    image: tuple[int, list[Any]] = (FLOAT, ["B", 3, "H", "W"]),
    opset: int = 17,
    domains: Sequence[str] = (),
    metadata: dict[str, str] | None = None,
    outputs: Sequence[str] = ("features",),
    axes: Sequence[Any] = ("B", "C", "h", "w"),
    **constants: np.ndarray,
) -> Path:
    """Write a file of these nodes; weights are drawn from a seed."""
    random = np.random.default_rng(0)
    drawn = {
        "a.weight": random.normal(0, 0.3, (6, 3, 3, 3)),
        "b.weight": random.normal(0, 0.3, (4, 6, 3, 3)),
        "b.bias": random.normal(0, 0.3, 4),
        "n.scale": random.uniform(0.5, 2, 6),
        "n.bias": random.normal(0, 0.3, 6),
        "n.mean": random.normal(0, 0.3, 6),
        "n.var": random.uniform(0.5, 2, 6),
    }
    values = {name: value.astype(np.float32) for name, value in drawn.items()} | constants
    used = {name for node in nodes for name in node[1]}
    graph = helper.make_graph(
        [helper.make_node(kind, ins, [out], **rest) for kind, ins, out, rest in nodes],
        "net",
        [helper.make_tensor_value_info("image", *image)],
        [helper.make_tensor_value_info(name, FLOAT, axes) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in values.items() if name in used],
    )
    imports = [helper.make_opsetid(domain, 1) for domain in domains] + [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return make(tmp_path / "net.onnx")


def test_file_is_an_encoder_whose_norms_are_folded(file: Path, tmp_path: Path) -> None:
    encoder = architecture(str(file), trainable=["*"])
    assert isinstance(encoder, OnnxEncoder) and (encoder.stride, encoder.channels) == (8, 4)
    assert encoder.weights == ("a.weight", "a.weight.bias", "b.weight", "b.bias")
    # The export checks features against the file's own, with BatchNorm, and the derivative by differences.
    bundle = export_bundle(str(file), tmp_path / "bundle", image_size=SIZE, seed=0, trainable=["b.*"])
    assert bundle.spec.name == "net.onnx" and bundle.spec.feature_shape == (4, 6, 8)
    assert [parameter.name for parameter in bundle.spec.parameters] == ["b.weight", "b.bias"]
    assert "vjp" in bundle.graphs


def test_pixels_and_metadata_decide_what_the_file_sees(tmp_path: Path) -> None:
    pixels: list[Node] = [
        ("Cast", ["image"], "float", {"to": FLOAT}),
        ("Transpose", ["float"], "first", {"perm": [0, 3, 1, 2]}),
        ("Conv", ["first", "a.weight"], "features", {"strides": [4, 4], "pads": [1, 1, 1, 1]}),
    ]
    raw = make(tmp_path / "raw.onnx", pixels, image=(TensorProto.UINT8, ["B", "H", "W", 3]))
    scaled = make(
        tmp_path / "scaled.onnx",
        [("Conv", ["image", "a.weight"], "features", pixels[2][3])],
        metadata={"mean": "0, 0, 0", "std": f"{1 / 255} " * 3},
    )
    image_BHWC = np.random.default_rng(1).integers(0, 256, (1, 48, 64, 3), dtype=np.uint8)
    features = []
    for path in (raw, scaled):
        bundle = export_bundle(str(path), tmp_path / path.stem, image_size=SIZE, seed=0)
        features.append(Encoder(bundle, mode="bind").forward(bundle.theta0, image_BHWC))
    np.testing.assert_allclose(*features, rtol=1e-4, atol=1e-3)
    with pytest.raises(OperatorError, match="metadata 'std' must be finite and above 0, got '1 1 0'"):
        file_encoder(make(tmp_path / "bad.onnx", metadata={"std": "1 1 0"}))
    with pytest.raises(OperatorError, match="metadata 'mean' must be three numbers"):
        file_encoder(make(tmp_path / "bad.onnx", metadata={"mean": "grey"}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": (FLOAT, ["B", "C", "H", "W"])}, r"axis 1 of its input 'image' must be 3.*size \('C'\)"),
        ({"image": (FLOAT, ["B", 1, "H", "W"])}, "axis 1 .* must be 3, .* is 1"),
        ({"image": (FLOAT, [3, "H", "W"])}, "has 3 axes"),
        ({"image": (TensorProto.FLOAT16, ["B", 3, "H", "W"])}, r"must be float32 .* got float16"),
        ({"outputs": ("features", "a")}, "must have one output, has 2: 'features', 'a'"),
        ({"opset": 25}, "is of opset 25; export with 18"),
        ({"nodes": [("FancyConv", ["image"], "features", {"domain": "their.own"})], "domains": ["their.own"]},
         "operator FancyConv .* is of their.own"),
        ({"nodes": [("RandomNormalLike", ["image"], "features", {})]}, "operator RandomNormalLike .* random"),
        ({"nodes": [("Relu", ["image"], "features", {})]}, "has no float32 weights of Conv"),
        ({"axes": ("B", "C")}, r"its output 'features' must be features \(B, C, h, w\), has 2 axes"),
        ({"nodes": [("Conv", ["image", "a.weight"], "features", {"strides": [4, 2], "pads": [1, 1, 1, 1]})]},
         "must have a whole stride, the same down and across; 64x64 pixels became 32x16 cells"),
        ({"b.bias": np.array([1, np.nan, 0, 0], np.float32)}, "not finite"),
        ({"b.bias": np.zeros(5, np.float32)}, "does not run on images of 64x64"),
        ({"nodes": [*NORMED[:2], ("Add", ["n", "image"], "features", {})]}, "is no valid ONNX|does not run"),
        ({"nodes": [*NORMED, ("Conv", ["image", "dead"], "unused", {})],
          "dead": np.ones((1, 3, 1, 1), np.float32)},
         "'dead' has no part in the features"),
        ({"nodes": [*NORMED[:3], ("Softmax", ["h"], "s", {"axis": 0}), ("Conv", ["s", "b.weight"], "features",
          {"pads": [1, 1, 1, 1]})]}, "axis 0 of its input must be a batch of any size.*depend on the others"),
    ],
)  # fmt: skip
def test_file_that_is_no_encoder_is_refused_by_name(tmp_path: Path, changes: Any, words: str) -> None:
    changes = dict(changes)
    path = make(tmp_path / "net.onnx", changes.pop("nodes", NORMED), **changes)
    with pytest.raises(OperatorError, match=words) as refusal:
        file_encoder(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_file_with_a_graph_inside_is_refused_by_operator(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["y"])],
        "b",
        [],
        [helper.make_tensor_value_info("y", FLOAT, None)],
    )
    nodes: list[Node] = [
        ("Constant", [], "yes", {"value": numpy_helper.from_array(np.array(True))}),
        ("If", ["yes"], "x", {"then_branch": branch, "else_branch": branch}),
        ("Conv", ["x", "a.weight"], "features", {}),
    ]
    with pytest.raises(OperatorError, match=r"operator If .* holds a graph of its own"):
        file_encoder(make(tmp_path / "net.onnx", nodes))


def test_older_file_is_converted(tmp_path: Path) -> None:
    nodes: list[Node] = [
        ("ReduceMean", ["image"], "m", {"axes": [1], "keepdims": 1}),
        ("Sub", ["image", "m"], "s", {}),
        ("Conv", ["s", "a.weight"], "features", {"strides": [4, 4], "pads": [1, 1, 1, 1]}),
    ]
    path = make(tmp_path / "net.onnx", nodes, opset=11, image=(FLOAT, ["B", 3, 48, 64]))
    bundle = export_bundle(str(path), tmp_path / "bundle", image_size=SIZE, seed=0, trainable=["*"])
    assert bundle.spec.opset == 18 and "vjp" in bundle.graphs
    with pytest.raises(OperatorError, match="takes images of 64x48, got 128x96; give --image-size 64x48"):
        export_bundle(str(path), tmp_path / "other", image_size=(128, 96), seed=0)


@given(data=st.binary(max_size=300), cut=st.integers(0, 2000))
def test_anything_else_is_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cut: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    whole = make(path).read_bytes()
    for content in (data, whole[: cut % len(whole)]):
        path.write_bytes(content)
        with pytest.raises(OperatorError) as refusal:
            file_encoder(path)
        assert "\n" not in str(refusal.value)
    with pytest.raises(OperatorError, match="No such file"):
        file_encoder(path.with_name("none.onnx"))


def _scenario(world: World, file: Path, algorithm: str, *trainable: str) -> Scenario:
    return changed(
        source_scenario_of(world),
        algorithm=algorithm,
        vehicles=1,
        rounds=1,
        encoder=EncoderPart(name=str(file), trainable=trainable, mode="bind"),
        first_order=FirstOrder(epochs=1, batch_size=4),
        zeroth_order=ZerothOrderConfig(batches=2, batch_size=3),
        spsa=SpsaPlan(queries=1, rate=1e-3),
    )


@pytest.mark.parametrize(
    ("nodes", "algorithm", "has_way_back"), [(NORMED, "split", True), (SOFT, "blackfed-v1", False)]
)
def test_fleet_trains_the_weights_that_are_named(
    tiny_world: World, tmp_path: Path, nodes: list[Node], algorithm: str, has_way_back: bool
) -> None:
    """By gradients, and by losses where there is no way back."""
    file = make(tmp_path / "net.onnx", nodes)
    scenario = _scenario(tiny_world, file, algorithm, "a.*")
    result = run(scenario, tmp_path / "run")
    assert result["vehicles"]["car-01"]["local_miou"] is not None
    bundle = EncoderBundle.load(tmp_path / "run" / "bundles" / folder_name(str(file)))
    assert ("vjp" in bundle.graphs) == has_way_back
    assert all(parameter.name.startswith("a.") for parameter in bundle.spec.parameters)
    learnt = _theta(tmp_path / "run" / "vehicles" / "car-01", bundle)
    assert np.isfinite(learnt).all() and (learnt != bundle.theta0).mean() > 0.9


def _theta(folder: Path, bundle: EncoderBundle) -> np.ndarray:
    last = max(int(path.stem.removeprefix("turn-")) for path in folder.glob("turn-*.state"))
    return StateStore(folder, vehicle="car-01", bundle_digest=bundle_digest(bundle)).load(last).theta


@pytest.mark.parametrize(
    ("algorithm", "trainable", "words"),
    [
        (
            "blackfleet",
            (),
            r"nothing of encoder .*net.onnx learns unless .*encoder.trainable, such as 'b.bias'",
        ),
        ("blackfleet", ("*",), r"blackfleet goes back through .* operator Softplus .*spsa-gc"),
        ("split", ("a.weight",), "split goes back through .* operator Softplus"),
        ("fedavg", ("*",), "fedavg trains encoder and network in torch as one"),
        ("centralized", ("*",), "centralized trains encoder and network in torch as one"),
        ("blackfed-v2", ("c.*",), r"encoder.trainable names 'c.\*'.* it has a.weight, b.weight, b.bias"),
        ("frozen", (), None),
        ("split", ("b.*",), None),
        ("blackfed-v2", ("*",), None),
    ],
)
def test_what_needs_more_of_a_file_is_refused_before_anything_starts(
    tiny_world: World, tmp_path: Path, algorithm: str, trainable: tuple[str, ...], words: str | None
) -> None:
    scenario = _scenario(tiny_world, make(tmp_path / "net.onnx", SOFT), algorithm, *trainable)
    if words is None:
        check_runnable(scenario)
        return
    with pytest.raises(OperatorError, match=words):
        check_runnable(scenario)


def test_settings_of_files_are_for_files(file: Path) -> None:
    with pytest.raises(SettingError, match=r"takes no encoder.trainable, got b: that is of ONNX files"):
        architecture("stride8-c8", trainable=["b"])
    with pytest.raises(SettingError, match="has its own weights"):
        architecture(str(file), Path("weights.pth"))
    assert missing_way_back(file_encoder(file), SIZE) is None
    assert file_encoder(file) is file_encoder(file)
    onnx.checker.check_model(onnx.load(file))


def test_run_keeps_where_the_file_is(file: Path, tiny_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    scenario = _scenario(tiny_world, Path("net.onnx"), "frozen")
    scenario = msgspec.structs.replace(scenario, encoders={"car-01": "net.onnx"})
    kept = with_absolute_paths(scenario)
    assert kept.encoder.name == kept.encoders["car-01"] == str(file)
