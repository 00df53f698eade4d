"""ONNX graphs of an encoder, built from its chain of convolutions with plain operators.

Layer i reads `x{i}` and writes `x{i+1}`, the last one `features_BCHW`. θ is float32 (n,): the values of
initializers, or one more input `theta` that the graph takes apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_client.encoder.bundle import ParameterSpec
from fleet.export.encoders import PIXEL_MEAN, PIXEL_STD, ConvolutionEncoder

OPSET = 17
IR_VERSION = 8
"""Of ONNX 1.12, which every ONNX Runtime since 1.12 reads."""

Value = tuple[str, int, list[str | int]]
"""Name, element type and shape of a graph's input or output."""


@dataclass
class Graph:
    """A graph under construction; parameters are left out until it is serialised."""

    inputs: list[Value]
    outputs: list[Value] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, NDArray[np.generic]] = field(default_factory=dict)

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append a node and return the name of its output."""
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """Define a constant and return its name."""
        self.constants[name] = value
        return name

    def serialise(self, parameters: Sequence[ParameterSpec], theta: NDArray[np.float32] | None) -> bytes:
        """The model's bytes, the same for the same graph; θ None makes it an input."""
        unpack: list[onnx.NodeProto] = []
        constants = dict(self.constants)
        inputs = list(self.inputs)
        if theta is None:
            inputs.append(("theta", TensorProto.FLOAT, [sum(parameter.size for parameter in parameters)]))
            constants["sizes"] = np.array([parameter.size for parameter in parameters], np.int64)
            pieces = [f"{parameter.name}.flat" for parameter in parameters]
            unpack.append(helper.make_node("Split", ["theta", "sizes"], pieces, axis=0))
        used = {name for node in self.nodes for name in node.input}
        for parameter in parameters:
            if parameter.name not in used:
                continue
            name, end = parameter.name, parameter.offset + parameter.size
            if theta is None:
                constants[f"{name}.shape"] = np.array(parameter.shape, np.int64)
                unpack.append(helper.make_node("Reshape", [f"{name}.flat", f"{name}.shape"], [name]))
            else:
                constants[name] = theta[parameter.offset : end].reshape(parameter.shape)
        graph = helper.make_graph(
            unpack + self.nodes,
            "encoder",
            [helper.make_tensor_value_info(*value) for value in inputs],
            [helper.make_tensor_value_info(*value) for value in self.outputs],
            [numpy_helper.from_array(value, key) for key, value in constants.items()],
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="blackfleet",
        )
        onnx.checker.check_model(model, full_check=True)
        serialised: bytes = model.SerializeToString(deterministic=True)
        return serialised


def forward_graph(encoder: ConvolutionEncoder, image_size: tuple[int, int], *, tape: bool = False) -> Graph:
    """`image_BHWC` uint8 RGB to `features_BCHW` float32.

    Args:
        encoder: without BatchNorm, see `ConvolutionEncoder.folded`.
        image_size: width and height.
        tape: also return every layer's input, which the backward pass needs.
    """
    width, height = image_size
    graph = Graph([("image_BHWC", TensorProto.UINT8, ["B", height, width, 3])])
    scale = 1 / (255 * np.array(PIXEL_STD, np.float64))
    shift = np.array(PIXEL_MEAN) * 255 * scale
    # transposing bytes moves a quarter of what transposing floats would
    graph.add("Transpose", ["image_BHWC"], "image_BCHW", perm=[0, 3, 1, 2])
    graph.add("Cast", ["image_BCHW"], "pixels_BCHW", to=TensorProto.FLOAT)
    graph.constant("pixel_scale", scale.astype(np.float32).reshape(3, 1, 1))
    graph.constant("pixel_shift", shift.astype(np.float32).reshape(3, 1, 1))
    graph.add("Mul", ["pixels_BCHW", "pixel_scale"], "scaled_BCHW")
    graph.add("Sub", ["scaled_BCHW", "pixel_shift"], "x0")
    values = activations(encoder, image_size)
    for index, layer in enumerate(encoder.layers):
        output = values[index + 1][0]
        graph.add(
            "Conv",
            [f"x{index}", f"conv{index}.weight", f"conv{index}.bias"],
            f"z{index}" if layer.relu else output,
            kernel_shape=[layer.kernel] * 2,
            strides=[layer.stride] * 2,
            pads=[layer.kernel // 2] * 4,
        )
        if layer.relu:
            graph.add("Relu", [f"z{index}"], output)
    graph.outputs = [values[-1], *values[:-1]] if tape else [values[-1]]
    return graph


def activations(encoder: ConvolutionEncoder, image_size: tuple[int, int]) -> list[Value]:
    """The normalised image `x0` and what each layer writes."""
    channels, width, height = 3, *image_size
    values: list[Value] = [("x0", TensorProto.FLOAT, ["B", channels, height, width])]
    for index, layer in enumerate(encoder.layers):
        width, height = width // layer.stride, height // layer.stride
        name = "features_BCHW" if index == len(encoder.layers) - 1 else f"x{index + 1}"
        values.append((name, TensorProto.FLOAT, ["B", layer.channels, height, width]))
    return values


def parameter_specs(encoder: ConvolutionEncoder) -> tuple[ParameterSpec, ...]:
    """What θ consists of, in the order of `encoder.parameters()`."""
    specs: list[ParameterSpec] = []
    offset = 0
    for name, parameter in encoder.named_parameters():
        _, layer, kind = name.split(".")
        specs.append(
            ParameterSpec(
                name=f"conv{layer}.{kind}",
                shape=tuple(parameter.shape),
                offset=offset,
                kind="weight" if kind == "weight" else "bias",
            )
        )
        offset += parameter.numel()
    return tuple(specs)


def byte_offsets(model: bytes, parameters: Sequence[ParameterSpec]) -> tuple[int, ...]:
    """Where the data of each parameter starts in the serialised model."""
    tensors = {tensor.name: tensor for tensor in onnx.load_from_string(model).graph.initializer}
    offsets: list[int] = []
    for parameter in parameters:
        tensor = tensors[parameter.name]
        # the whole tensor is unique by its name; its data alone is not, where it is all zeros
        whole = tensor.SerializeToString(deterministic=True)
        offsets.append(model.index(whole) + whole.index(tensor.raw_data))
    return tuple(offsets)
