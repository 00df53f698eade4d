"""How much an ONNX graph computes, counted by its operators."""

from __future__ import annotations

import math

import onnx
from onnx import shape_inference


def multiply_adds(model: onnx.ModelProto) -> int:
    """Of one frame: multiplications of Conv, ConvTranspose, Gemm and MatMul; a free size is the batch's.

    Raises:
        KeyError: the shape of a tensor can't be inferred.
    """
    alone = onnx.ModelProto()
    alone.CopyFrom(model)
    for value in (*alone.graph.input, *alone.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = 1
    inferred = shape_inference.infer_shapes(alone, data_prop=True).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.output, *inferred.value_info):
        shapes[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    total = 0
    for node in inferred.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "Conv":
            total += math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
        elif node.op_type == "ConvTranspose":
            total += math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])
        elif node.op_type in ("MatMul", "Gemm"):
            left = shapes[node.input[0]]
            shared = left[0] if "transA" in attributes and attributes["transA"].i else left[-1]
            total += math.prod(shapes[node.output[0]]) * shared
    return total


def counted(model: bytes) -> int:
    """`multiply_adds` of a serialised graph; 0 where they can't be counted."""
    try:
        return multiply_adds(onnx.load_from_string(model))
    except (KeyError, shape_inference.InferenceError):
        return 0
