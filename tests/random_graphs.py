"""Random small networks as ONNX graphs, with the same in torch to compare their gradients with.

Shapes: B frames, C channels, H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto
from torch.nn import functional as F

from fleet.export.graphs import Graph

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

    def run_torch(
        self, x: Array, v: Array, dtype: torch.dtype = torch.float64
    ) -> tuple[np.ndarray, np.ndarray]:
        """Output and the gradient of ⟨output, v⟩ for all parameters, flat, computed in `dtype`."""
        values = {
            name: torch.tensor(p, dtype=dtype, requires_grad=True) for name, p in self.parameters.items()
        }
        leaves = list(values.values())
        values["x"] = torch.tensor(x, dtype=dtype)
        for name, step in self.steps:
            values[name] = step(values)
        output = values[self.last]
        gradients = torch.autograd.grad(output, leaves, torch.tensor(v, dtype=dtype), allow_unused=True)
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
    statistics = [torch.tensor(g.graph.constants[name]) for name in names]
    g.append(
        "BatchNormalization",
        [x, scale, bias, *names],
        lambda v: F.batch_norm(v[x], *[s.to(v[x].dtype) for s in statistics], v[scale], v[bias], eps=1e-5),
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
