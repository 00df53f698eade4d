"""Reverse mode over an ONNX graph: from v, what ⟨output, v⟩ changes by with each learnable parameter.

The forward graph's values keep their names. Those that the way back needs are its inputs, beside v: the
*tape*. Axis 0 of a value may be the batch B, of any size; every other axis is known at export.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference

from fleet.export.errors import ExportError
from fleet.export.graphs import Graph, Value

Shape = tuple[int | None, ...]
"""Sizes of a value's axes; None is the batch."""
ChannelSum = Literal["scale", "shift"]
"""What is wanted of a parameter p in place of its gradient g, for each channel along axis 0: Σ g·p or Σ g."""
Rule = Callable[["Backward", "Node", str], None]
"""Given a node and the gradient of its first output, gives gradients to those of its inputs that need one."""


@dataclass(frozen=True)
class Node:
    """One node of the forward graph."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    @property
    def output(self) -> str:
        """The first output."""
        return self.outputs[0]


@dataclass(frozen=True, kw_only=True)
class WayBack:
    """What `derive` makes."""

    tape: tuple[Value, ...]
    """Values of the forward graph that the way back takes, besides v and θ."""
    graph: Graph
    """`v_BCHW`, the tape (and θ, as `Graph.serialise` adds it) to `gradient`, float32: one
    number for each element, or each channel, of what learns."""


class Backward:
    """The way back under construction: shapes and values of the forward graph, gradients so far."""

    def __init__(
        self, model: onnx.ModelProto, learnable: Sequence[str], by_channel: Mapping[str, ChannelSum]
    ) -> None:
        self.graph = Graph([], opset=model.opset_import[0].version)
        self.nodes = [
            Node(
                node.op_type,
                tuple(node.input),
                tuple(node.output),
                {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute},
            )
            for node in model.graph.node
        ]
        self._shapes = _shapes(model)
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        for node in self.nodes:
            if node.operator == "Constant":
                self._constants[node.output] = numpy_helper.to_array(node.attributes["value"])
        self._learnable = frozenset(learnable)
        self._by_channel = by_channel
        self._readers: dict[str, list[Node]] = {}
        for reader in self.nodes:
            for name in dict.fromkeys(reader.inputs):
                self._readers.setdefault(name, []).append(reader)
        self._outputs = frozenset(value.name for value in model.graph.output)
        self._active = self._reached_from(learnable)
        self._gradients: dict[str, list[str]] = {}
        self._tape: dict[str, Value] = {}
        self._count = 0

    # What rules ask ---------------------------------------------------------------------------------------

    def needs(self, name: str) -> bool:
        """Whether a value depends on what learns, so that its gradient is wanted."""
        return name in self._active

    def shape(self, name: str) -> Shape:
        """Sizes of a forward value's axes.

        Raises:
            ExportError: the graph does not tell.
        """
        if name not in self._shapes:
            raise ExportError(f"the graph does not tell the shape of {name!r}; export it with fixed sizes")
        return self._shapes[name]

    def constant_of(self, name: str) -> NDArray[Any] | None:
        """A forward value that is the same for all inputs and does not learn; None for others."""
        return self._constants.get(name) if name not in self._learnable else None

    def channel_sum(self, name: str) -> ChannelSum | None:
        """What is wanted of a parameter in place of its gradient; None where it is the gradient."""
        return self._by_channel.get(name)

    def value_where_passed(self, name: str) -> str:
        """A forward value to be multiplied with its gradient: right wherever that is not zero.

        What a ReLU or Clip gives equals what it is given where it lets a gradient pass, and is on the tape
        already; asking for its input would keep ONNX Runtime from fusing it with the convolution before.
        """
        readers = self._readers.get(name, [])
        if name not in self._outputs and len(readers) == 1 and readers[0].operator in ("Relu", "Clip"):
            return self.value(readers[0].output)
        return self.value(name)

    def value(self, name: str) -> str:
        """Make a forward value available on the way back: as a constant, as part of θ, or on the tape."""
        constant = self.constant_of(name)
        if constant is not None:
            return self.graph.constant(name, constant)
        if name not in self._learnable:
            shape = self.shape(name)
            self._tape[name] = (name, TensorProto.FLOAT, ["B" if size is None else size for size in shape])
        return name

    # What rules do ----------------------------------------------------------------------------------------

    def add(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Append a node; returns the name of its output."""
        self._count += 1
        return self.graph.add(operator, inputs, f"back{self._count}.{operator}", **attributes)

    def constant(self, value: NDArray[np.generic] | Sequence[int] | float) -> str:
        """A constant of its own; sequences become int64, numbers float32."""
        self._count += 1
        if isinstance(value, float):
            value = np.array(value, np.float32)
        elif not isinstance(value, np.ndarray):
            value = np.array(value, np.int64)
        return self.graph.constant(f"back{self._count}.constant", value)

    def give(self, name: str, gradient: str) -> None:
        """Add to the gradient of a forward value."""
        wanted = self._by_channel.get(name)
        if wanted is not None:
            shape = self.shape(name)
            if wanted == "scale":
                gradient = self.add("Mul", [gradient, self.value(name)])
            if shape[1:]:
                rows = self.reshape(gradient, (shape[0], math.prod(size or 1 for size in shape[1:])))
                gradient = self.add("ReduceSum", [rows, self.constant([1])], keepdims=0)
        self._gradients.setdefault(name, []).append(gradient)

    def give_channels(self, name: str, sums_O: str) -> None:
        """Add to what is wanted of a parameter by channel; see `channel_sum`."""
        self._gradients.setdefault(name, []).append(sums_O)

    def product_with_transposed(self, left: str, right: str) -> str:
        """left · rightᵀ of the last two of four axes. ONNX Runtime makes one node of the two, whose kernel
        reads both along the rows: for long rows ten times as fast as the product of a row and a column."""
        return self.add("MatMul", [left, self.add("Transpose", [right], perm=[0, 1, 3, 2])])

    def reduce(self, gradient: str, shape: Shape, to: Shape) -> str:
        """Sum a gradient of `shape` over the axes along which a value of shape `to` was repeated."""
        lead = len(shape) - len(to)
        axes = [
            axis for axis in range(len(shape)) if axis < lead or (to[axis - lead] == 1 and shape[axis] != 1)
        ]
        if not axes:
            return gradient
        summed = self.add("ReduceSum", [gradient, self.constant(axes)], keepdims=1)
        return self.reshape(summed, to) if lead else summed

    def reshape(self, name: str, to: Shape) -> str:
        """Reshape; the batch, if there is one, is axis 0."""
        return self.add("Reshape", [name, self.constant([-1 if size is None else size for size in to])])

    # The whole --------------------------------------------------------------------------------------------

    def run(self, output: str, sizes: Mapping[str, tuple[int, ...]], rules: Mapping[str, Rule]) -> WayBack:
        """Go back from `output` to every learnable parameter; see `derive`."""
        shape = self.shape(output)
        v: Value = ("v_BCHW", TensorProto.FLOAT, ["B" if size is None else size for size in shape])
        self.give(output, "v_BCHW")
        for node in reversed(self.nodes):
            gradient = self._collected(node.output)
            if gradient is None or not any(map(self.needs, node.inputs)):
                continue
            if node.operator not in rules:
                raise ExportError(
                    f"there is no way back through operator {node.operator} (node output {node.output!r}); "
                    f"known operators: {', '.join(sorted(rules))}"
                )
            rules[node.operator](self, node, gradient)
        parts, counts = [], []
        for name, size in sizes.items():
            gradient = self._collected(name)
            if gradient is None:
                raise ExportError(f"parameter {name!r} does not reach the features: it would never learn")
            count = size[0] if name in self._by_channel else math.prod(size)
            parts.append(self.reshape(gradient, (count,)))
            counts.append(count)
        self.graph.add("Concat", parts, "gradient", axis=0)
        self.graph.inputs = [v, *self._tape.values()]
        self.graph.outputs = [("gradient", TensorProto.FLOAT, [sum(counts)])]
        return WayBack(tape=tuple(self._tape.values()), graph=self.graph)

    def _collected(self, name: str) -> str | None:
        """The whole gradient of a value: the sum of what its readers gave."""
        parts = self._gradients.get(name)
        if not parts:
            return None
        if len(parts) > 1:
            total = parts[0]
            for part in parts[1:]:
                total = self.add("Add", [total, part])
            self._gradients[name] = [total]
        return self._gradients[name][0]

    def _reached_from(self, learnable: Sequence[str]) -> frozenset[str]:
        active = set(learnable)
        for node in self.nodes:
            if active.intersection(node.inputs):
                active.update(node.outputs)
        return frozenset(active)


def _shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """Every value's shape; axis 0 may be the batch, other axes of unknown size leave a value out."""
    inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.output, *inferred.value_info):
        if not value.type.tensor_type.HasField("shape"):
            continue
        sizes = [
            dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim
        ]
        if None not in sizes[1:]:
            shapes[value.name] = tuple(sizes)
    return shapes
