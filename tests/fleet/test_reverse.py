"""The derived way back, against autograd: over random graphs, and operator by operator where it is refused.

Shapes: B frames, C channels, H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto
from torch.nn import functional as F

from edge_client.encoder.bundle import ParameterSpec
from edge_client.encoder.onnx_runtime import ort
from fleet.export.errors import ExportError
from fleet.export.graphs import Graph
from fleet.export.reverse import ChannelSum, derive

FRAMES = 2
Array = NDArray[np.float32]
Step = Callable[[dict[str, torch.Tensor]], torch.Tensor]


@dataclass
class RandomGraph:
    """The same function twice: as an ONNX graph, and as steps of torch in float64."""

    random: np.random.Generator
    graph: Graph
    shapes: dict[str, tuple[int, int, int]]
    """C, H, W of each value so far."""
    steps: list[tuple[str, Step]] = field(default_factory=list)
    parameters: dict[str, Array] = field(default_factory=dict)

    @property
    def last(self) -> str:
        return next(reversed(self.shapes))

    def parameter(self, *shape: int) -> str:
        name = f"p{len(self.parameters)}"
        self.parameters[name] = self.random.normal(0, 0.5, shape).astype(np.float32)
        return name

    def append(
        self, operator: str, inputs: list[str], step: Step, shape: tuple[int, int, int], **attributes: object
    ) -> None:
        name = f"y{len(self.steps)}"
        self.graph.add(operator, inputs, name, **attributes)
        self.steps.append((name, step))
        self.shapes[name] = shape

    def run_torch(self, x: Array, v: Array) -> tuple[Array, Array]:
        """Output and the gradient of ⟨output, v⟩ for all parameters, flat."""
        values = {
            name: torch.tensor(p, dtype=torch.float64, requires_grad=True)
            for name, p in self.parameters.items()
        }
        leaves = list(values.values())
        values["x"] = torch.tensor(x, dtype=torch.float64)
        for name, step in self.steps:
            values[name] = step(values)
        output = values[self.last]
        gradients = torch.autograd.grad(
            output, leaves, torch.tensor(v, dtype=torch.float64), allow_unused=True
        )
        flat = torch.cat(
            [
                (torch.zeros_like(p) if g is None else g).ravel()
                for p, g in zip(leaves, gradients, strict=True)
            ]
        )
        return output.detach().numpy(), flat.numpy()


def convolution(g: RandomGraph, draw: st.DrawFn) -> None:
    x, (channels, height, width) = g.last, g.shapes[g.last]
    groups = draw(st.sampled_from([n for n in range(1, channels + 1) if channels % n == 0]))
    outs = groups * draw(st.integers(1, 3))
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    strides = draw(st.sampled_from([(1, 1), (2, 2), (2, 1), (3, 3)]))
    dilations = draw(st.sampled_from([(1, 1), (2, 2), (1, 2)]))
    top, left, bottom, right = draw(st.tuples(*[st.integers(0, 3)] * 4))
    sizes = [
        (size + before + after - dilation * (k - 1) - 1) // stride + 1
        for size, before, after, dilation, k, stride in zip(
            (height, width), (top, left), (bottom, right), dilations, kernel, strides, strict=True
        )
    ]
    if min(sizes) < 1 or min(height + top + bottom, width + left + right) < 1:
        return
    weight, bias = g.parameter(outs, channels // groups, *kernel), g.parameter(outs)

    def step(values: dict[str, torch.Tensor]) -> torch.Tensor:
        padded = F.pad(values[x], (left, right, top, bottom))
        return F.conv2d(padded, values[weight], values[bias], strides, 0, dilations, groups)

    g.append(
        "Conv",
        [x, weight, bias],
        step,
        (outs, sizes[0], sizes[1]),
        kernel_shape=kernel,
        strides=strides,
        dilations=dilations,
        pads=[top, left, bottom, right],
        group=groups,
    )


def unary(g: RandomGraph, draw: st.DrawFn) -> None:
    x = g.last
    name, attributes, function = draw(
        st.sampled_from(
            [
                ("Relu", {}, F.relu),
                ("Sigmoid", {}, torch.sigmoid),
                ("Tanh", {}, torch.tanh),
                ("HardSwish", {}, F.hardswish),
                ("LeakyRelu", {"alpha": 0.125}, lambda t: F.leaky_relu(t, 0.125)),
                ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, F.hardsigmoid),
                ("Identity", {}, lambda t: t),
            ]
        )
    )
    g.append(name, [x], lambda values: function(values[x]), g.shapes[x], **attributes)


def clip(g: RandomGraph, draw: st.DrawFn) -> None:
    x = g.last
    low, high = draw(st.sampled_from([(-0.5, 1.5), (-0.5, None), (None, 1.5)]))
    inputs = [x] + [
        "" if bound is None else g.graph.constant(f"bound{bound}", np.array(bound, np.float32))
        for bound in (low, high)
    ]
    if high is None:
        inputs.pop()
    g.append("Clip", inputs, lambda values: torch.clamp(values[x], low, high), g.shapes[x])


def binary(g: RandomGraph, draw: st.DrawFn) -> None:
    """With an earlier value of the same shape, or with one number a channel that learns."""
    x, shape = g.last, g.shapes[g.last]
    others = [name for name, other in g.shapes.items() if other == shape and name != "x"]
    kind = draw(st.sampled_from(["value", "channel", "channels in a batch"]))
    if kind == "value" and others:
        other = draw(st.sampled_from(others))
    elif kind == "channel":
        other = g.parameter(shape[0], 1, 1)
    else:
        other = g.parameter(1, shape[0], 1, 1)
    name, function = draw(st.sampled_from([("Add", torch.add), ("Sub", torch.sub), ("Mul", torch.mul)]))
    inputs = draw(st.permutations([x, other]))
    g.append(name, list(inputs), lambda values: function(values[inputs[0]], values[inputs[1]]), shape)


def divide(g: RandomGraph, draw: st.DrawFn) -> None:
    x, shape = g.last, g.shapes[g.last]
    divisor = g.parameter(shape[0], 1, 1)
    g.parameters[divisor] = 1 + np.abs(g.parameters[divisor])
    g.append("Div", [x, divisor], lambda values: values[x] / values[divisor], shape)


def concatenation(g: RandomGraph, draw: st.DrawFn) -> None:
    x, (channels, *size) = g.last, g.shapes[g.last]
    others = [name for name, (_, *other) in g.shapes.items() if other == size]
    names = [x, draw(st.sampled_from(others))]
    total = channels + g.shapes[names[1]][0]
    if total > 8:
        return
    g.append(
        "Concat",
        names,
        lambda values: torch.cat([values[name] for name in names], 1),
        (total, size[0], size[1]),
        axis=1,
    )


def pool(g: RandomGraph, draw: st.DrawFn) -> None:
    x, (channels, height, width) = g.last, g.shapes[g.last]
    kernel, stride = draw(st.integers(2, 3)), draw(st.integers(1, 3))
    padding = draw(st.integers(0, 1))
    sizes = [(size + 2 * padding - kernel) // stride + 1 for size in (height, width)]
    if min(sizes) < 1:
        return
    shape = (channels, sizes[0], sizes[1])
    attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [padding] * 4}
    if draw(st.booleans()):
        g.append("MaxPool", [x], lambda v: F.max_pool2d(v[x], kernel, stride, padding), shape, **attributes)
        return
    everything = draw(st.booleans())
    g.append(
        "AveragePool",
        [x],
        lambda v: F.avg_pool2d(v[x], kernel, stride, padding, count_include_pad=everything),
        shape,
        count_include_pad=int(everything),
        **attributes,
    )


def attention(g: RandomGraph, draw: st.DrawFn) -> None:
    """A channel's mean weights the channel, as in squeeze and excite."""
    x, shape = g.last, g.shapes[g.last]
    if draw(st.booleans()):
        g.append("GlobalAveragePool", [x], lambda v: v[x].mean((2, 3), keepdim=True), (shape[0], 1, 1))
    else:
        g.append("ReduceMean", [x], lambda v: v[x].mean((2, 3), keepdim=True), (shape[0], 1, 1), axes=[2, 3])
    mean = g.last
    g.append("Mul", [x, mean], lambda v: v[x] * v[mean], shape)


def resizing(g: RandomGraph, draw: st.DrawFn) -> None:
    x, (channels, height, width) = g.last, g.shapes[g.last]
    if height * width > 200:
        return
    scales = g.graph.constant("twice", np.array([1, 1, 2, 2], np.float32))
    mode, attributes = draw(
        st.sampled_from(
            [
                ("nearest", {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
                ("bilinear", {"coordinate_transformation_mode": "half_pixel"}),
            ]
        )
    )
    g.append(
        "Resize",
        [x, "", scales],
        lambda v: F.interpolate(v[x], scale_factor=2, mode=mode),
        (channels, 2 * height, 2 * width),
        mode="nearest" if mode == "nearest" else "linear",
        **attributes,
    )


def padding(g: RandomGraph, draw: st.DrawFn) -> None:
    x, (channels, height, width) = g.last, g.shapes[g.last]
    top, left, bottom, right = draw(st.tuples(*[st.integers(0, 2)] * 4))
    pads = g.graph.constant(f"pads{len(g.steps)}", np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
    shape = (channels, height + top + bottom, width + left + right)
    g.append("Pad", [x, pads], lambda v: F.pad(v[x], (left, right, top, bottom)), shape)


def normalisation(g: RandomGraph, draw: st.DrawFn) -> None:
    x, shape = g.last, g.shapes[g.last]
    number = len(g.steps)
    mean, variance = g.random.normal(size=shape[0]), g.random.uniform(0.5, 2, shape[0])
    names = [
        g.graph.constant(f"{what}{number}", value.astype(np.float32))
        for what, value in (("mean", mean), ("variance", variance))
    ]
    scale, bias = g.parameter(shape[0]), g.parameter(shape[0])
    statistics = [torch.tensor(g.graph.constants[name], dtype=torch.float64) for name in names]
    g.append(
        "BatchNormalization",
        [x, scale, bias, *names],
        lambda v: F.batch_norm(v[x], *statistics, v[scale], v[bias], eps=1e-5),
        shape,
    )


def turned(g: RandomGraph, draw: st.DrawFn) -> None:
    """Rows for columns."""
    x, (channels, height, width) = g.last, g.shapes[g.last]
    g.append("Transpose", [x], lambda v: v[x].transpose(2, 3), (channels, width, height), perm=[0, 1, 3, 2])


def refolded(g: RandomGraph, draw: st.DrawFn) -> None:
    """Rows as channels."""
    x, (channels, height, width) = g.last, g.shapes[g.last]
    if channels * height > 16:
        return
    target = g.graph.constant(f"fold{len(g.steps)}", np.array([0, channels * height, 1, width], np.int64))
    g.append(
        "Reshape", [x, target], lambda v: v[x].reshape(FRAMES, -1, 1, width), (channels * height, 1, width)
    )


PIECES = [
    *(convolution,) * 4,
    *(unary,) * 2,
    clip,
    *(binary,) * 2,
    divide,
    concatenation,
    pool,
    attention,
    resizing,
    padding,
    normalisation,
    turned,
    refolded,
]


@st.composite
def random_graphs(draw: st.DrawFn) -> RandomGraph:
    channels, height, width = draw(st.integers(1, 3)), draw(st.integers(4, 9)), draw(st.integers(4, 9))
    inputs = [("x", TensorProto.FLOAT, ["B", channels, height, width])]
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    g = RandomGraph(random, Graph(list(inputs)), {"x": (channels, height, width)})
    convolution(g, draw)
    for piece in draw(st.lists(st.sampled_from(PIECES), min_size=1, max_size=7)):
        piece(g, draw)
    return g


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


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
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
    products = gradient * theta
    wanted: dict[str, tuple[ChannelSum | None, list[np.ndarray]]] = {
        "elements": (None, [gradient]),
        "scales": ("scale", channel_sums(products, layout)),
        "shifts": ("shift", channel_sums(gradient, layout)),
    }
    outputs = list(g.graph.outputs)
    for kind, parts in wanted.values():
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
        assert np.abs(found - exact).max() <= 1e-5 * max(largest, np.abs(exact).max(), 1e-3)


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
