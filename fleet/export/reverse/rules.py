"""The way back through each operator but convolutions: rules by operator.

A rule reads what it needs of the forward pass by `Backward.value`; what it can take from a node's output it
takes from there, because the next node's way back mostly wants that one, too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from fleet.export.errors import ExportError
from fleet.export.reverse.backward import Backward, Node, Rule
from fleet.export.reverse.convolution import convolution
from fleet.export.reverse.pooling import average_pool, global_average_pool, max_pool
from fleet.export.reverse.resize import resize


def _identity(back: Backward, node: Node, gradient: str) -> None:
    back.give(node.inputs[0], gradient)


def _mask(back: Backward, gradient: str, *conditions: str) -> str:
    """The gradient where all conditions hold. Cast and Mul take a ninth of the time of Where."""
    passes = conditions[0]
    for condition in conditions[1:]:
        passes = back.add("And", [passes, condition])
    return back.add("Mul", [gradient, back.add("Cast", [passes], to=TensorProto.FLOAT)])


def _relu(back: Backward, node: Node, gradient: str) -> None:
    positive = back.add("Greater", [back.value(node.output), back.constant(0.0)])
    back.give(node.inputs[0], _mask(back, gradient, positive))


def _clip(back: Backward, node: Node, gradient: str) -> None:
    """Nothing passes at a bound itself, as in torch's hardtanh."""
    bounds = [*node.inputs[1:], "", ""][:2]
    conditions = []
    for bound, compare in zip(bounds, ("Greater", "Less"), strict=True):
        if bound:
            conditions.append(back.add(compare, [back.value(node.output), back.value(bound)]))
    back.give(node.inputs[0], _mask(back, gradient, *conditions) if conditions else gradient)


def _leaky_relu(back: Backward, node: Node, gradient: str) -> None:
    alpha = float(node.attributes.get("alpha", 0.01))
    if alpha < 0:
        raise ExportError(f"LeakyRelu with alpha {alpha:g} has no way back here; alpha must be at least 0")
    negative = back.add("Mul", [_slope_of(back, node.inputs[0]), back.constant(alpha - 1.0)])
    slope = back.add("Add", [negative, back.constant(1.0)])
    back.give(node.inputs[0], back.add("Mul", [gradient, slope]))


def _slope_of(back: Backward, name: str) -> str:
    """1 where a value is below 0, else 0."""
    below = back.add("Less", [back.value(name), back.constant(0.0)])
    return back.add("Cast", [below], to=TensorProto.FLOAT)


def _sigmoid(back: Backward, node: Node, gradient: str) -> None:
    y = back.value(node.output)
    slope = back.add("Mul", [y, back.add("Sub", [back.constant(1.0), y])])
    back.give(node.inputs[0], back.add("Mul", [gradient, slope]))


def _tanh(back: Backward, node: Node, gradient: str) -> None:
    y = back.value(node.output)
    slope = back.add("Sub", [back.constant(1.0), back.add("Mul", [y, y])])
    back.give(node.inputs[0], back.add("Mul", [gradient, slope]))


def _hard_sigmoid(back: Backward, node: Node, gradient: str) -> None:
    y, alpha = back.value(node.output), float(node.attributes.get("alpha", 0.2))
    inside = (back.add("Greater", [y, back.constant(0.0)]), back.add("Less", [y, back.constant(1.0)]))
    passed = _mask(back, gradient, *inside)
    back.give(node.inputs[0], back.add("Mul", [passed, back.constant(alpha)]))


def _hard_swish(back: Backward, node: Node, gradient: str) -> None:
    """x·clip(x/6 + 1/2, 0, 1): 0 below −3, 1 above 3, x/3 + 1/2 between."""
    x = back.value(node.inputs[0])
    third = back.add("Mul", [x, back.constant(1 / 3)])
    line = back.add("Add", [third, back.constant(0.5)])
    between = back.add("Less", [back.add("Abs", [x]), back.constant(3.0)])
    above = back.add("GreaterOrEqual", [x, back.constant(3.0)])
    slope = back.add(
        "Add",
        [_mask(back, line, between), back.add("Cast", [above], to=TensorProto.FLOAT)],
    )
    back.give(node.inputs[0], back.add("Mul", [gradient, slope]))


def _add(back: Backward, node: Node, gradient: str) -> None:
    for name in node.inputs:
        _give_reduced(back, node, name, gradient)


def _sub(back: Backward, node: Node, gradient: str) -> None:
    left, right = node.inputs
    _give_reduced(back, node, left, gradient)
    if back.needs(right):
        _give_reduced(back, node, right, back.add("Neg", [gradient]))


def _mul(back: Backward, node: Node, gradient: str) -> None:
    left, right = node.inputs
    for name, other in ((left, right), (right, left)):
        if back.needs(name):
            _give_reduced(back, node, name, back.add("Mul", [gradient, back.value(other)]))


def _div(back: Backward, node: Node, gradient: str) -> None:
    left, right = node.inputs
    quotient = back.add("Div", [gradient, back.value(right)])
    _give_reduced(back, node, left, quotient)
    if back.needs(right):
        product = back.add("Mul", [quotient, back.value(node.output)])
        _give_reduced(back, node, right, back.add("Neg", [product]))


def _give_reduced(back: Backward, node: Node, name: str, gradient: str) -> None:
    if back.needs(name):
        back.give(name, back.reduce(gradient, back.shape(node.output), back.shape(name)))


def _concat(back: Backward, node: Node, gradient: str) -> None:
    axis = int(node.attributes["axis"]) % len(back.shape(node.output))
    start = 0
    for name in node.inputs:
        size = back.shape(name)[axis]
        if size is None:
            raise ExportError(f"Concat along the batch has no way back (node output {node.output!r})")
        if back.needs(name):
            back.give(name, _sliced(back, gradient, {axis: (start, start + size)}))
        start += size


def _pad(back: Backward, node: Node, gradient: str) -> None:
    mode = node.attributes.get("mode", b"constant").decode()
    if mode != "constant":
        raise ExportError(f"Pad in mode {mode!r} has no way back; pad with a constant")
    pads = _ints(back, node, 1)
    shape = back.shape(node.inputs[0])
    axes = _ints(back, node, 3).tolist() if len(node.inputs) > 3 and node.inputs[3] else range(len(shape))
    kept = {}
    for position, axis in enumerate(axes):
        before, size = int(pads[position]), shape[axis % len(shape)]
        if before or int(pads[position + len(pads) // 2]):
            if size is None or before < 0 or int(pads[position + len(pads) // 2]) < 0:
                raise ExportError(f"Pad of the batch, or by less than 0, has no way back ({node.output!r})")
            kept[axis % len(shape)] = (before, before + size)
    back.give(node.inputs[0], _sliced(back, gradient, kept))


def _transpose(back: Backward, node: Node, gradient: str) -> None:
    rank = len(back.shape(node.inputs[0]))
    order = node.attributes.get("perm", list(reversed(range(rank))))
    back.give(node.inputs[0], back.add("Transpose", [gradient], perm=np.argsort(order).tolist()))


def _reshape(back: Backward, node: Node, gradient: str) -> None:
    back.give(node.inputs[0], back.reshape(gradient, back.shape(node.inputs[0])))


def _reduce_mean(back: Backward, node: Node, gradient: str) -> None:
    """Over axes other than the batch."""
    shape = back.shape(node.inputs[0])
    given = node.attributes.get("axes") or (
        _ints(back, node, 1) if len(node.inputs) > 1 else range(len(shape))
    )
    axes = sorted(int(axis) % len(shape) for axis in given)
    sizes = [shape[axis] for axis in axes]
    if None in sizes:
        raise ExportError(f"ReduceMean over the batch has no way back (node output {node.output!r})")
    if not node.attributes.get("keepdims", 1):
        kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
        gradient = back.reshape(gradient, kept)
    spread: NDArray[np.float32] = np.ones(
        [size if axis in axes else 1 for axis, size in enumerate(shape)],  # type: ignore[misc]
        np.float32,
    )
    back.give(node.inputs[0], back.add("Mul", [gradient, back.constant(spread / np.float32(spread.size))]))


def _batch_normalization(back: Backward, node: Node, gradient: str) -> None:
    """In evaluation: x is scaled and shifted by constants; its own scale and bias may learn."""
    x, scale, bias, mean, variance = node.inputs
    mean_C, variance_C = back.constant_of(mean), back.constant_of(variance)
    if mean_C is None or variance_C is None:
        raise ExportError(
            "BatchNormalization has a way back with constant statistics alone; export in eval()"
        )
    spread = (1, -1, *[1] * (len(back.shape(x)) - 2))
    inverse = 1 / np.sqrt(variance_C.astype(np.float64) + float(node.attributes.get("epsilon", 1e-5)))
    inverse_BC11 = back.constant(inverse.astype(np.float32).reshape(spread))
    over = back.constant([axis for axis in range(len(back.shape(x))) if axis != 1])
    if back.needs(x):
        scale_C = back.add("Reshape", [back.value(scale), back.constant(spread)])
        slope = back.add("Mul", [scale_C, inverse_BC11])
        back.give(x, back.add("Mul", [gradient, slope]))
    if back.needs(scale):
        centred = back.add("Sub", [back.value(x), back.constant(mean_C.astype(np.float32).reshape(spread))])
        normalised = back.add("Mul", [centred, inverse_BC11])
        product = back.add("Mul", [gradient, normalised])
        back.give(scale, back.add("ReduceSum", [product, over], keepdims=0))
    if back.needs(bias):
        back.give(bias, back.add("ReduceSum", [gradient, over], keepdims=0))


def _sliced(back: Backward, name: str, kept: dict[int, tuple[int, int]]) -> str:
    """The part of a value from first to last of some axes."""
    if not kept:
        return name
    starts, ends = (back.constant([bounds[side] for bounds in kept.values()]) for side in (0, 1))
    return back.add("Slice", [name, starts, ends, back.constant(list(kept))])


def _ints(back: Backward, node: Node, position: int) -> NDArray[np.int64]:
    """An input that must be a constant."""
    constant = back.constant_of(node.inputs[position])
    if constant is None:
        raise ExportError(
            f"{node.operator} takes {node.inputs[position]!r}, where a way back needs a constant"
        )
    return constant.astype(np.int64)


RULES: dict[str, Rule] = {
    "Add": _add,
    "AveragePool": average_pool,
    "BatchNormalization": _batch_normalization,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": convolution,
    "Div": _div,
    "Flatten": _reshape,
    "GlobalAveragePool": global_average_pool,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Identity": _identity,
    "LeakyRelu": _leaky_relu,
    "MaxPool": max_pool,
    "Mul": _mul,
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Relu": _relu,
    "Reshape": _reshape,
    "Resize": resize,
    "Sigmoid": _sigmoid,
    "Squeeze": _reshape,
    "Sub": _sub,
    "Tanh": _tanh,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
"""Operators that have a way back."""
