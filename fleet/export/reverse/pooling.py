"""The way back through pooling."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from fleet.export.errors import ExportError
from fleet.export.reverse.backward import Backward, Node


def max_pool(back: Backward, node: Node, gradient: str) -> None:
    """Each maximum gets the gradients of the windows that it won: the first one, as in torch."""
    x = node.inputs[0]
    attributes = {key: value for key, value in node.attributes.items() if key != "storage_order"}
    if node.attributes.get("storage_order", 0):
        raise ExportError(f"MaxPool in column order has no way back (node output {node.output!r})")
    name = back.value(x)
    maxima, places = f"{node.output}.again", f"{node.output}.places"
    back.graph.nodes.append(helper.make_node("MaxPool", [name], [maxima, places], **attributes))
    flat = back.constant([-1])
    zeros = back.add("Mul", [back.add("Reshape", [name, flat]), back.constant(0.0)])
    scattered = back.add(
        "ScatterElements",
        [zeros, back.add("Reshape", [places, flat]), back.add("Reshape", [gradient, flat])],
        axis=0,
        reduction="add",
    )
    back.give(x, back.reshape(scattered, back.shape(x)))


def average_pool(back: Backward, node: Node, gradient: str) -> None:
    """Every pixel under a window gets an equal share of its gradient."""
    x = node.inputs[0]
    in_size = [_known(size, node) for size in back.shape(x)[2:]]
    out_size = [_known(size, node) for size in back.shape(node.output)[2:]]
    if len(in_size) != 2 or node.attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b""):
        raise ExportError(f"AveragePool must be two-dimensional and give its pads ({node.output!r})")
    kernel = [int(size) for size in node.attributes["kernel_shape"]]
    strides = [int(step) for step in node.attributes.get("strides", [1, 1])]
    pads = [int(pad) for pad in node.attributes.get("pads", [0] * 4)]
    if any(step != 1 for step in node.attributes.get("dilations", [1, 1])):
        raise ExportError(f"AveragePool with dilations has no way back (node output {node.output!r})")
    everything = bool(node.attributes.get("count_include_pad", 0))
    # the share is one over the pixels that the window counts, along each axis
    counted = [
        _counted(
            in_size[axis], out_size[axis], kernel[axis], strides[axis], pads[axis], pads[axis + 2], everything
        )
        for axis in (0, 1)
    ]
    share = (1 / np.outer(*counted)).astype(np.float32)
    shared = back.add("Mul", [gradient, back.constant(share)])
    # rows: how pixels lie under windows; a product of two 0-1 matrices, one for each axis
    under = [
        _under(in_size[axis], out_size[axis], kernel[axis], strides[axis], pads[axis]) for axis in (0, 1)
    ]
    down = back.add("MatMul", [back.constant(under[0].T.copy()), shared])
    back.give(x, back.add("MatMul", [down, back.constant(under[1])]))


def global_average_pool(back: Backward, node: Node, gradient: str) -> None:
    """An equal share for every pixel."""
    x = node.inputs[0]
    sizes = [_known(size, node) for size in back.shape(x)[2:]]
    spread = np.ones([1, 1, *sizes], np.float32)
    back.give(x, back.add("Mul", [gradient, back.constant(spread / np.float32(spread.size))]))


def _under(size: int, windows: int, kernel: int, stride: int, pad: int) -> NDArray[np.float32]:
    """(windows, size): 1 where a pixel lies under a window."""
    first = stride * np.arange(windows)[:, None] - pad
    position = np.arange(size)[None]
    under: NDArray[np.float32] = ((position >= first) & (position < first + kernel)).astype(np.float32)
    return under


def _counted(
    size: int, windows: int, kernel: int, stride: int, before: int, after: int, everything: bool
) -> NDArray[np.float64]:
    """Pixels along one axis that each window divides by; with `everything` those of the padding, too."""
    first = stride * np.arange(windows) - before
    low, high = (-before, size + after) if everything else (0, size)
    pixels: NDArray[np.float64] = (np.minimum(first + kernel, high) - np.maximum(first, low)).astype(
        np.float64
    )
    return pixels


def _known(size: int | None, node: Node) -> int:
    if size is None:
        raise ExportError(f"{node.operator} must be of known size (node output {node.output!r})")
    return size
