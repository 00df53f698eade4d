"""The way back through Resize: along each axis it is a matrix, whatever its mode."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edge_client.encoder.onnx_runtime import ort
from fleet.export.errors import ExportError
from fleet.export.graphs import IR_VERSION, OPSET
from fleet.export.reverse.backward import Backward, Node


def resize(back: Backward, node: Node, gradient: str) -> None:
    """Multiply by the transposed matrices of rows and columns."""
    x = node.inputs[0]
    before, after = back.shape(x), back.shape(node.output)
    if len(before) != 4 or before[1] != after[1] or None in before[1:]:
        raise ExportError(f"Resize must leave batch and channels alone (node output {node.output!r})")
    scales = back.constant_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
    for axis in (2, 3):
        size, new_size = before[axis], after[axis]
        assert size is not None and new_size is not None
        if size == new_size:
            continue
        scale = None if scales is None or not scales.size else float(scales[axis])
        matrix = _matrix(node, size, new_size, scale)
        if axis == 2:
            gradient = back.add("MatMul", [back.constant(np.ascontiguousarray(matrix.T)), gradient])
        else:
            gradient = back.add("MatMul", [gradient, back.constant(matrix)])
    back.give(x, gradient)


def _matrix(node: Node, size: int, new_size: int, scale: float | None) -> NDArray[np.float32]:
    """(new_size, size), found by resizing the unit vectors with ONNX Runtime itself."""
    keys = ("mode", "coordinate_transformation_mode", "nearest_mode", "cubic_coeff_a", "exclude_outside")
    attributes = {key: node.attributes[key] for key in keys if key in node.attributes}
    shape = [1, 1, size, size]
    inputs = ["units", "", "scales"] if scale is not None else ["units", "", "", "sizes"]
    argument = (
        helper.make_tensor("scales", TensorProto.FLOAT, [4], [1, 1, scale, 1])
        if scale is not None
        else helper.make_tensor("sizes", TensorProto.INT64, [4], [1, 1, new_size, size])
    )
    graph = helper.make_graph(
        [helper.make_node("Resize", inputs, ["resized"], **attributes)],
        "matrix",
        [helper.make_tensor_value_info("units", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("resized", TensorProto.FLOAT, None)],
        [argument],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    [resized] = session.run(None, {"units": np.eye(size, dtype=np.float32).reshape(shape)})
    matrix: NDArray[np.float32] = np.ascontiguousarray(resized[0, 0])
    return matrix
