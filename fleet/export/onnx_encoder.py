"""An ONNX file as an encoder: its weights are constants, but for those that are named as what learns.

Shapes: B frames, H by W pixels, C channels.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import nn

from edge_client.encoder.bundle import ParameterSpec
from edge_client.encoder.onnx_runtime import ort
from edge_client.encoder.sessions import CPU, open_session
from fleet.errors import OperatorError
from fleet.export.errors import ExportError
from fleet.export.graphs import Graph, pixels_graph
from fleet.export.onnx_file import OnnxFile, read_onnx_file
from protocol.plans.adaptation import SubspaceName

_FEATURES = "features_BCHW"
_PROBE_SIDE = 64
_NAMED = 6
"""Weights that an error names; the rest is counted."""
_BATCH_TOLERANCE = 1e-4


class OnnxEncoder(nn.Module):
    """The file as an encoder; what it computes is for ONNX Runtime, torch does not train it.

    Args:
        file: what was read.
        trainable: names of weights that learn, or patterns such as `block3.*`; None: none is named, and θ is
            all that could be.

    Attributes:
        stride: image pixels per feature cell, along each side.
        channels: C of the features.
        is_named: whether somebody has named what learns.

    Raises:
        OperatorError: ONNX Runtime can't run it, what it gives are no features, or a pattern names nothing.
    """

    subspace: SubspaceName = "all"
    """What learns where nobody says."""

    def __init__(self, file: OnnxFile, trainable: Sequence[str] | None = None) -> None:
        super().__init__()
        self._file = file
        self.rgb_mean, self.rgb_std = file.rgb_mean, file.rgb_std
        self.is_named = bool(trainable)
        self._names = _chosen(file, trainable) if trainable else file.weights
        if not self._names:
            raise file.refuse("has no float32 weights of Conv, ConvTranspose, Gemm or MatMul")
        self.theta = nn.ParameterList(
            nn.Parameter(torch.from_numpy(np.array(file.constants[name]))) for name in self._names
        )
        self.stride, self.channels = self._probed()

    @property
    def weights(self) -> tuple[str, ...]:
        """All that can be named as learning."""
        return self._file.weights

    def initialise(self, seed: int) -> None:
        """The weights are the file's, whatever the seed."""

    def folded(self) -> OnnxEncoder:
        """The same; always a new module."""
        return copy.deepcopy(self)

    def __deepcopy__(self, memo: object) -> OnnxEncoder:
        twin = copy.copy(self)
        twin._modules = dict(self._modules)
        twin.theta = nn.ParameterList(nn.Parameter(value.detach().clone()) for value in self.theta)
        return twin

    def projection(self) -> tuple[str, ...]:
        """Names of the parameters of its projection: a file tells of none."""
        return ()

    def check_size(self, image_size: tuple[int, int]) -> None:
        """Refuse frames of another width and height than the file takes.

        Raises:
            OperatorError: the message says which it takes.
        """
        if any(own not in (None, asked) for own, asked in zip(self._file.size, image_size, strict=True)):
            width, height = (own or asked for own, asked in zip(self._file.size, image_size, strict=True))
            raise self._file.refuse(
                f"takes images of {width}x{height}, got {image_size[0]}x{image_size[1]}; give --image-size "
                f"{width}x{height}, or export it with free axes for height and width"
            )

    def forward_graph(self, image_size: tuple[int, int]) -> Graph:
        """`image_BHWC` uint8 RGB to `features_BCHW` float32, parameters left out.

        Raises:
            OperatorError: the file takes images of another size.
        """
        self.check_size(image_size)
        graph = self._graph(image_size)
        width, height = image_size
        shape: list[str | int] = ["B", self.channels, height // self.stride, width // self.stride]
        graph.outputs = [(_FEATURES, TensorProto.FLOAT, shape)]
        return graph

    def parameter_specs(self) -> tuple[ParameterSpec, ...]:
        """What θ consists of, in the order of `parameters()`."""
        specs: list[ParameterSpec] = []
        offset = 0
        for name in self._names:
            shape = self._file.constants[name].shape
            kind = "weight" if len(shape) > 1 else "bias"
            specs.append(ParameterSpec(name=name, shape=shape, offset=offset, kind=kind))  # type: ignore[arg-type]
            offset += specs[-1].size
        return tuple(specs)

    def expected(self, image_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What the file as it lies there gives for images, by ONNX Runtime."""
        session = ort.InferenceSession(str(self._file.path), providers=[CPU])
        image = image_BHWC
        if not self._file.takes_pixels:
            scaled = image_BHWC.astype(np.float64) / 255
            normalised = (scaled - np.array(self.rgb_mean)) / np.array(self.rgb_std)
            image = normalised.astype(np.float32).transpose(0, 3, 1, 2)
        frames = [session.run(None, {session.get_inputs()[0].name: frame[None]})[0] for frame in image]
        return np.concatenate(frames)

    def _graph(self, image_size: tuple[int, int]) -> Graph:
        """From pixels to features, whose shape is not told yet."""
        width, height = image_size
        if self._file.takes_pixels:
            graph = Graph([("image_BHWC", TensorProto.UINT8, ["B", height, width, 3])])
            image = "image_BHWC"
        else:
            graph = pixels_graph(image_size, self.rgb_mean, self.rgb_std)
            image = "x0"
        graph.opset = self._file.opset
        ends = {self._file.input: image, self._file.output: _FEATURES}
        for node in self._file.nodes:
            joined = onnx.NodeProto()
            joined.CopyFrom(node)
            joined.input[:] = [ends.get(name, name) for name in node.input]
            joined.output[:] = [ends.get(name, name) for name in node.output]
            graph.nodes.append(joined)
        for name, value in self._file.constants.items():
            if name not in self._names:
                graph.constant(name, value)
        return graph

    def _probed(self) -> tuple[int, int]:
        """(stride, channels), by running it; what stands in the way of learning is refused."""
        width, height = (own or _PROBE_SIDE for own in self._file.size)
        graph = self._graph((width, height))
        graph.outputs = [(_FEATURES, TensorProto.FLOAT, ["B", "C", "h", "w"])]
        theta = torch.nn.utils.parameters_to_vector(self.parameters()).detach().numpy()
        try:
            model = graph.serialise(self.parameter_specs(), theta)
            session = open_session(model, CPU, 1)
            random = np.random.default_rng(0)
            image_BHWC = random.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
            image_BHWC[0] = 127
            single, other = (session.run([_FEATURES], {"image_BHWC": frame[None]})[0] for frame in image_BHWC)
        except Exception as error:  # ONNX's checker and ONNX Runtime raise what they like
            raise self._file.refuse(
                f"does not run on images of {width}x{height}: {_one_line(error)}"
            ) from error
        if single.shape[0] != 1:
            raise self._file.refuse(f"must turn an image into features (1, C, h, w), got {single.shape}")
        _, channels, rows, columns = single.shape
        if height % rows or width % columns or height // rows != width // columns:
            raise self._file.refuse(
                f"must have a whole stride, the same down and across; {width}x{height} pixels became "
                f"{columns}x{rows} cells"
            )
        if not (np.isfinite(single).all() and np.isfinite(other).all()):
            raise self._file.refuse("gives features that are not finite")
        self._check_batch(session, image_BHWC, np.concatenate([single, other]))
        self._check_reach(graph)
        return height // rows, channels

    def _check_batch(
        self, session: ort.InferenceSession, image_BHWC: NDArray[np.uint8], expected: NDArray[np.float32]
    ) -> None:
        try:
            [both] = session.run([_FEATURES], {"image_BHWC": image_BHWC})
            reason = "" if both.shape == expected.shape else f"two images became {both.shape}"
            if not reason and np.abs(both - expected).max() > _BATCH_TOLERANCE * np.abs(expected).max():
                reason = "an image's features depend on the others in the batch"
        except Exception as error:  # as above
            reason = _one_line(error)
        if reason:
            fixed = "" if self._file.batch is None else f" (it is fixed to {self._file.batch})"
            raise self._file.refuse(
                f"axis 0 of its input must be a batch of any size{fixed}; export it so: {reason}"
            )

    def _check_reach(self, graph: Graph) -> None:
        """Every parameter has a part in the features."""
        wanted = {_FEATURES}
        for node in reversed(graph.nodes):
            if wanted.intersection(node.output):
                wanted.update(node.input)
        still = [name for name in self._names if name not in wanted]
        if still:
            raise self._file.refuse(
                f"its weight {still[0]!r} has no part in the features: it would never learn"
            )


def file_encoder(path: Path, trainable: Sequence[str] | None = None) -> OnnxEncoder:
    """A file as an encoder; one that has not changed is read once.

    Raises:
        OperatorError: see `read_onnx_file` and `OnnxEncoder`.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise OperatorError(f"encoder {path}: can't be read: {error.strerror}") from error
    chosen = tuple(trainable) if trainable else None
    return _cached(path, (status.st_size, status.st_mtime_ns), chosen)


@lru_cache(maxsize=8)
def _cached(path: Path, stamp: tuple[int, int], trainable: tuple[str, ...] | None) -> OnnxEncoder:
    return OnnxEncoder(read_onnx_file(path), trainable)


def missing_way_back(encoder: OnnxEncoder, image_size: tuple[int, int]) -> str | None:
    """Why there is no way back from the features to what learns; None where there is one."""
    from fleet.export.reverse import derive

    parameters = encoder.parameter_specs()
    theta = torch.nn.utils.parameters_to_vector(encoder.parameters()).detach().numpy()
    model = onnx.load_from_string(encoder.forward_graph(image_size).serialise(parameters, theta))
    try:
        derive(model, {parameter.name: parameter.shape for parameter in parameters}, _FEATURES)
    except ExportError as error:
        return str(error)
    return None


def some_of(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _chosen(file: OnnxFile, patterns: Sequence[str]) -> tuple[str, ...]:
    for pattern in patterns:
        if not fnmatch.filter(file.weights, pattern):
            raise file.refuse(
                f"encoder.trainable names {pattern!r}, which is no float32 weight of Conv, ConvTranspose, "
                f"Gemm or MatMul in it; it has {some_of(file.weights) or 'none'}"
            )
    return tuple(
        name for name in file.weights if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
