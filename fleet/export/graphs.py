"""ONNX graphs under construction, with plain operators; what they all begin with.

θ is float32 (n,): the values of
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

PIXEL_MEAN = (0.485, 0.456, 0.406)
"""Mean of RGB pixels scaled to [0, 1], over ImageNet."""
PIXEL_STD = (0.229, 0.224, 0.225)
"""Standard deviation of the same."""
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
    opset: int = OPSET

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
            opset_imports=[helper.make_opsetid("", self.opset)],
            ir_version=IR_VERSION,
            producer_name="blackfleet",
        )
        onnx.checker.check_model(model, full_check=True)
        serialised: bytes = model.SerializeToString(deterministic=True)
        return serialised


def pixels_graph(image_size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> Graph:
    """The beginning of every encoder: `image_BHWC` uint8 RGB to `x0`, normalised and channels first.

    Args:
        image_size: width and height.
        mean, std: of RGB scaled to [0, 1].
    """
    width, height = image_size
    graph = Graph([("image_BHWC", TensorProto.UINT8, ["B", height, width, 3])])
    scale = 1 / (255 * np.array(std, np.float64))
    shift = np.array(mean) * 255 * scale
    # transposing bytes moves a quarter of what transposing floats would
    graph.add("Transpose", ["image_BHWC"], "image_BCHW", perm=[0, 3, 1, 2])
    graph.add("Cast", ["image_BCHW"], "pixels_BCHW", to=TensorProto.FLOAT)
    graph.constant("pixel_scale", scale.astype(np.float32).reshape(3, 1, 1))
    graph.constant("pixel_shift", shift.astype(np.float32).reshape(3, 1, 1))
    graph.add("Mul", ["pixels_BCHW", "pixel_scale"], "scaled_BCHW")
    graph.add("Sub", ["scaled_BCHW", "pixel_shift"], "x0")
    return graph


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
