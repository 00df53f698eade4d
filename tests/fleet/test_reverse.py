"""The derived way back, against autograd: over random graphs, and operator by operator where it is refused.

Shapes: B frames, C channels, H W rows and columns.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto
from random_graphs import FRAMES, Array, RandomGraph, random_graphs

from edge_client.encoder.bundle import ParameterSpec
from edge_client.encoder.onnx_runtime import ort
from fleet.export.errors import ExportError
from fleet.export.graphs import Graph
from fleet.export.reverse import ChannelSum, derive


def specs(parameters: dict[str, Array]) -> list[ParameterSpec]:
    found, offset = [], 0
    for name, value in parameters.items():
        found.append(ParameterSpec(name=name, shape=value.shape, offset=offset, kind="weight"))
        offset += value.size
    return found


def run(model: bytes, feeds: dict[str, Array], outputs: list[str]) -> list[Array]:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    return list(session.run(outputs, {name: value for name, value in feeds.items() if name in wanted}))


def channel_sums(values: np.ndarray, layout: list[ParameterSpec]) -> list[np.ndarray]:
    """Of each parameter, summed over all axes but the first."""
    return [
        values[spec.offset : spec.offset + spec.size].reshape(spec.shape[0], -1).sum(1) for spec in layout
    ]


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(g=random_graphs())
def test_gradient_of_a_random_graph_is_autograds(g: RandomGraph) -> None:
    used = {name for node in g.graph.nodes for name in node.input}
    if g.last == "x" or not g.parameters:
        return
    shape = g.shapes[g.last]
    g.graph.outputs = [(g.last, TensorProto.FLOAT, ["B", *shape])]
    layout = specs(g.parameters)
    theta = np.concatenate([value.ravel() for value in g.parameters.values()])
    assert used >= set(g.parameters)
    model = onnx.load_from_string(g.graph.serialise(layout, theta))
    shapes = {spec.name: spec.shape for spec in layout}
    channels, height, width = g.shapes["x"]
    x = g.random.standard_normal((FRAMES, channels, height, width), np.float32)
    v = g.random.standard_normal((FRAMES, *shape), np.float32)
    expected, gradient = g.run_torch(x, v)
    # what autograd in the same precision loses where the parts of a sum cancel
    rounding = np.abs(g.run_torch(x, v, torch.float32)[1] - gradient)
    products, product_rounding = gradient * theta, rounding * np.abs(theta)
    wanted: list[tuple[ChannelSum | None, list[np.ndarray], list[np.ndarray]]] = [
        (None, [gradient], [rounding]),
        ("scale", channel_sums(products, layout), channel_sums(product_rounding, layout)),
        ("shift", channel_sums(gradient, layout), channel_sums(rounding, layout)),
    ]
    outputs = list(g.graph.outputs)
    for kind, parts, lost in wanted:
        way_back = derive(model, shapes, g.last, by_channel=dict.fromkeys(shapes, kind) if kind else None)
        taped = [value for value in way_back.tape if value[0] not in {g.last, "x"}]
        g.graph.outputs = [*outputs, *taped]
        names = [value[0] for value in g.graph.outputs]
        tape = dict(zip(names, run(g.graph.serialise(layout, theta), {"x": x}, names), strict=True))
        assert np.abs(tape[g.last] - expected).max() <= 1e-5 * max(np.abs(expected).max(), 1e-3)
        feeds = {**tape, "x": x, "v_BCHW": v, "theta": theta}
        [found] = run(way_back.graph.serialise(layout, None), feeds, ["gradient"])
        exact = np.concatenate(parts)
        # by channel the parts of a sum may cancel, which leaves its rounding
        largest = np.abs(exact if kind is None else products if kind == "scale" else gradient).max()
        assert (
            np.abs(found - exact).max()
            <= 1e-5 * max(largest, np.abs(exact).max(), 1e-3) + 4 * np.concatenate(lost).max()
        )


def graph_of(operator: str, **attributes: object) -> tuple[onnx.ModelProto, dict[str, tuple[int, ...]]]:
    """One number a channel, then a node of the operator."""
    graph = Graph([("x", TensorProto.FLOAT, ["B", 2, 4, 4])])
    graph.add("Mul", ["x", "scale"], "scaled")
    graph.add(operator, ["scaled"], "y", **attributes)
    graph.outputs = [("y", TensorProto.FLOAT, ["B", 2, 4, 4])]
    layout = [ParameterSpec(name="scale", shape=(2, 1, 1), offset=0, kind="weight")]
    model = onnx.load_from_string(graph.serialise(layout, np.ones(2, np.float32)))
    return model, {"scale": (2, 1, 1)}


def test_operator_without_a_way_back_is_named() -> None:
    with pytest.raises(ExportError, match="no way back through operator Erf"):
        derive(*graph_of("Erf"), "y")


def test_parameter_that_reaches_nothing_is_named() -> None:
    model, _ = graph_of("Relu")
    with pytest.raises(ExportError, match="'elsewhere' does not reach the features"):
        derive(model, {"scale": (2, 1, 1), "elsewhere": (3,)}, "y")


def test_what_does_not_learn_is_not_differentiated() -> None:
    """Only nodes between what learns and the output are gone back through."""
    graph = Graph([("x", TensorProto.FLOAT, ["B", 2, 4, 4])])
    graph.add("Erf", ["x"], "first")  # has no way back, and needs none
    graph.add("Mul", ["first", "scale"], "y")
    graph.outputs = [("y", TensorProto.FLOAT, ["B", 2, 4, 4])]
    layout = [ParameterSpec(name="scale", shape=(2, 1, 1), offset=0, kind="weight")]
    model = onnx.load_from_string(graph.serialise(layout, np.ones(2, np.float32)))
    way_back = derive(model, {"scale": (2, 1, 1)}, "y")
    assert [value[0] for value in way_back.tape] == ["first"]
