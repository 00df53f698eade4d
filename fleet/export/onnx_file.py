"""An ONNX file of somebody else's, read and checked: plain operators, one image in, features out.

Its image is float32 (B, 3, H, W), normalised as `Normalisation` says, or uint8 RGB (B, H, W, 3) as a camera
gives it. Axis 0 is the batch; H and W are fixed, or any.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter

from fleet.errors import OperatorError
from fleet.export.graphs import PIXEL_MEAN, PIXEL_STD

SMALLEST_OPSET, LARGEST_OPSET = 13, 21
"""Older files are converted; newer ones are not what every ONNX Runtime on a vehicle runs."""
_CONVERTED_OPSET = 18
_WEIGHT_INPUTS = {"Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "MatMul": (0, 1)}
"""Where the operators whose weights can learn take them."""
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
_PREFIX = "file/"
"""Of the names of its values in our graphs, whose own names must stay free."""


@dataclass(frozen=True)
class OnnxFile:
    """What was read."""

    path: Path
    opset: int
    nodes: tuple[onnx.NodeProto, ...]
    """In order; their values' names begin with `file/`, but for weights."""
    constants: dict[str, NDArray[Any]]
    weights: tuple[str, ...]
    """Names of the constants that can learn, in the order of their use."""
    input: str
    takes_pixels: bool
    """Whether its image is uint8 (B, H, W, 3)."""
    size: tuple[int | None, int | None]
    """Width and height that its image must have; None = any."""
    batch: int | None
    """What its image has on axis 0; None = any."""
    output: str
    rgb_mean: tuple[float, float, float]
    rgb_std: tuple[float, float, float]

    def refuse(self, reason: str) -> OperatorError:
        """The error that it is no encoder."""
        return OperatorError(f"encoder {self.path}: {reason}")


def read_onnx_file(path: Path) -> OnnxFile:
    """Read and check a file.

    Raises:
        OperatorError: it can't be read, is not ONNX, or holds what no vehicle could run; operator or axis are
            named.
    """
    with _refusing(path):
        model = _loaded(path)
        _check_operators(model)
        model = _in_known_opset(model)
        constants, nodes = _constants(model)
        nodes = _fold_norms(nodes, constants, {value.name for value in model.graph.output})
        image = _one("input", [value for value in model.graph.input if value.name not in constants])
        features = _one("output", list(model.graph.output))
        takes_pixels, size, batch = _image(image)
        kind = features.type.tensor_type.elem_type
        if kind != TensorProto.FLOAT:
            raise _Fault(f"its output {features.name!r} must be float32, got {_type_name(kind)}")
        axes = len(features.type.tensor_type.shape.dim)
        if axes != 4:
            raise _Fault(f"its output {features.name!r} must be features (B, C, h, w), has {axes} axes")
        used = {name for node in nodes for name in node.input}
        constants = {name: value for name, value in constants.items() if name in used}
        mean, std = (PIXEL_MEAN, PIXEL_STD) if not takes_pixels else ((0.0,) * 3, (1.0,) * 3)
        weights = _weights(nodes, constants)
        names = {name: name if name in weights else _PREFIX + name for name in _names(nodes)}
        return OnnxFile(
            path=path,
            opset=next(entry.version for entry in model.opset_import if not entry.domain),
            nodes=tuple(_renamed(node, names) for node in nodes),
            constants={names[name]: value for name, value in constants.items()},
            weights=weights,
            input=names[image.name],
            takes_pixels=takes_pixels,
            size=size,
            batch=batch,
            output=names[features.name],
            rgb_mean=_metadata(model, "mean", mean),
            rgb_std=_metadata(model, "std", std),
        )


class _Fault(Exception):
    """What is wrong with a file; goes on after its name and a colon."""


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except _Fault as fault:
        raise OperatorError(f"encoder {path}: {fault}") from fault


def _loaded(path: Path) -> onnx.ModelProto:
    """The model with all its weights, local functions inlined."""
    try:
        model = onnx.load(path)
    except OSError as error:
        raise _Fault(f"can't be read: {error.strerror or error}") from error
    except onnx.checker.ValidationError as error:  # of weights in files beside it
        raise _Fault(f"can't be read whole: {_one_line(error)}") from error
    except Exception as error:  # protobuf's, which has no types
        raise _Fault(f"is no ONNX file: {_one_line(error)}") from error
    try:
        if not model.graph.node:
            raise _Fault("is no ONNX file: there is no operator in it")
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise _Fault(f"is no valid ONNX: {_one_line(error)}") from error
    return model


def _check_operators(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        what = f"operator {node.op_type} (node {node.name or node.output[0]!r})"
        if node.domain not in ("", "ai.onnx"):
            raise _Fault(f"{what} is of {node.domain}; only plain ONNX operators are run")
        if any(attribute.type in _GRAPHS for attribute in node.attribute):
            raise _Fault(f"{what} holds a graph of its own, which is not supported; export without it")
        if node.op_type in _RANDOM:
            raise _Fault(f"{what} draws at random; export for inference")


def _in_known_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset > LARGEST_OPSET:
        raise _Fault(f"is of opset {opset}; export with {_CONVERTED_OPSET} ({LARGEST_OPSET} at most)")
    if opset >= SMALLEST_OPSET:
        return model
    try:
        return version_converter.convert_version(model, _CONVERTED_OPSET)
    except Exception as error:  # whatever the converter, which is C++, meets
        raise _Fault(
            f"is of opset {opset} and can't be converted; export with {_CONVERTED_OPSET}: {_one_line(error)}"
        ) from error


def _constants(model: onnx.ModelProto) -> tuple[dict[str, NDArray[Any]], list[onnx.NodeProto]]:
    """Constants by name, and the nodes that compute: no Constant, and no Identity of one."""
    constants: dict[str, NDArray[Any]] = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer
    }
    same: dict[str, str] = {}
    nodes = []
    outputs = {value.name for value in model.graph.output}
    for node in model.graph.node:
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        copied.input[:] = [same.get(name, name) for name in node.input]
        if node.op_type == "Constant":
            constants[node.output[0]] = _constant_value(node)
        elif node.op_type == "Identity" and copied.input[0] in constants and node.output[0] not in outputs:
            same[node.output[0]] = copied.input[0]
        else:
            nodes.append(copied)
    return constants, nodes


def _constant_value(node: onnx.NodeProto) -> NDArray[Any]:
    [attribute] = node.attribute
    value = helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    if attribute.name.startswith("value_int"):
        return np.array(value, np.int64)
    if attribute.name.startswith("value_float"):
        return np.array(value, np.float32)
    raise _Fault(f"operator Constant (output {node.output[0]!r}) holds a {attribute.name}; not supported")


def _fold_norms(
    nodes: Sequence[onnx.NodeProto], constants: dict[str, NDArray[Any]], outputs: set[str]
) -> list[onnx.NodeProto]:
    """The same function, each BatchNormalization behind a convolution of its own made part of it."""
    makers = {node.output[0]: node for node in nodes}
    readers: dict[str, int] = {}
    for node in nodes:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    kept = []
    for node in nodes:
        maker = makers.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        alone = maker is not None and readers[node.input[0]] == 1 and node.input[0] not in outputs
        if maker is None or not alone or maker.op_type != "Conv" or len(node.output) > 1:
            kept.append(node)
            continue
        inputs = [*maker.input[1:], *node.input[1:]]
        if any(name not in constants or readers[name] > 1 for name in inputs):
            kept.append(node)
            continue
        scale, shift, mean, variance = (constants[name].astype(np.float64) for name in node.input[1:])
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        factor = scale / np.sqrt(variance + epsilon)
        weight = constants[maker.input[1]]
        bias = constants[maker.input[2]].astype(np.float64) if len(maker.input) > 2 else 0.0
        spread = factor.reshape(-1, *[1] * (weight.ndim - 1))
        constants[maker.input[1]] = (weight * spread).astype(weight.dtype)
        name = maker.input[2] if len(maker.input) > 2 else f"{maker.input[1]}.bias"
        constants[name] = ((bias - mean) * factor + shift).astype(weight.dtype)
        maker.input[:] = [*maker.input[:2], name]
        maker.output[:] = node.output[:1]
        makers[node.output[0]] = maker
    return kept


def _one(what: str, values: list[onnx.ValueInfoProto]) -> onnx.ValueInfoProto:
    if len(values) != 1:
        names = ", ".join(repr(value.name) for value in values) or "none"
        raise _Fault(f"must have one {what}, has {len(values)}: {names}")
    return values[0]


def _image(value: onnx.ValueInfoProto) -> tuple[bool, tuple[int | None, int | None], int | None]:
    """(whether pixels, (width, height), batch) of the input."""
    kind, axes = value.type.tensor_type.elem_type, value.type.tensor_type.shape.dim
    if kind not in (TensorProto.FLOAT, TensorProto.UINT8):
        raise _Fault(
            f"its input {value.name!r} must be float32 (B, 3, H, W) or uint8 (B, H, W, 3), got "
            f"{_type_name(kind)}"
        )
    takes_pixels = kind == TensorProto.UINT8
    wanted = "uint8 (B, H, W, 3)" if takes_pixels else "float32 (B, 3, H, W)"
    sizes = [axis.dim_value if axis.HasField("dim_value") else None for axis in axes]
    if len(sizes) != 4:
        raise _Fault(f"its input {value.name!r} must be {wanted}, has {len(sizes)} axes")
    channel_axis = 3 if takes_pixels else 1
    if sizes[channel_axis] != 3:
        found = sizes[channel_axis] or f"of no fixed size ({axes[channel_axis].dim_param or 'unknown'!r})"
        raise _Fault(f"axis {channel_axis} of its input {value.name!r} must be 3, as of {wanted}, is {found}")
    height, width = sizes[1:3] if takes_pixels else sizes[2:]
    return takes_pixels, (width, height), sizes[0]


def _weights(nodes: Sequence[onnx.NodeProto], constants: dict[str, NDArray[Any]]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for node in nodes:
        for position in _WEIGHT_INPUTS.get(node.op_type, ()):
            name = node.input[position] if position < len(node.input) else ""
            value = constants.get(name)
            if value is not None and value.dtype == np.float32 and value.ndim and value.size:
                found[name] = None
    return tuple(found)


def _metadata(model: onnx.ModelProto, key: str, default: tuple[float, ...]) -> tuple[float, float, float]:
    """Three numbers of the file's metadata, red, green, blue."""
    given = {entry.key: entry.value for entry in model.metadata_props}.get(key)
    if given is None:
        red, green, blue = default
        return red, green, blue
    try:
        red, green, blue = (float(number) for number in given.replace(",", " ").split())
    except ValueError:
        raise _Fault(f"its metadata {key!r} must be three numbers, red green blue, got {given!r}") from None
    usable = np.isfinite((red, green, blue)).all() and (key != "std" or min(red, green, blue) > 0)
    if not usable:
        raise _Fault(f"its metadata {key!r} must be finite{' and above 0' * (key == 'std')}, got {given!r}")
    return red, green, blue


def _names(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    return {name for node in nodes for name in (*node.input, *node.output) if name}


def _renamed(node: onnx.NodeProto, names: dict[str, str]) -> onnx.NodeProto:
    renamed = onnx.NodeProto()
    renamed.CopyFrom(node)
    renamed.name, renamed.doc_string = "", ""
    renamed.input[:] = [names.get(name, "") for name in node.input]
    renamed.output[:] = [names.get(name, "") for name in node.output]
    return renamed


def _type_name(kind: int) -> str:
    return str(TensorProto.DataType.Name(kind)).lower()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
