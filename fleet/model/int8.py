"""A model in eight-bit integers, by ONNX Runtime's own quantisation, and what that costs and gains.

Static, with QuantizeLinear and DequantizeLinear around what is quantised (QDQ), ranges from pictures of the
vehicle. Shapes: B frames, C channels, H W rows and columns, K classes, h w logit rows and columns.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edge_client.encoder.onnx_runtime import ort  # told to send nothing before its quantisation is imported
from edge_client.encoder.sessions import CPU, open_session
from edge_client.predict.card import FEATURES, IMAGE, LOGITS
from evaluation.likeliest import likeliest
from evaluation.scores import ConfusionMatrix
from fleet.export.errors import ExportError
from fleet.model.check import TestFrames, coded
from fleet.model.graphs import ROUNDING
from fleet.model.served import Served
from protocol.plans.coding import Coding

CALIBRATION_FRAMES = 64
"""Most train frames, evenly spaced, whose ranges decide the scales."""
_REPEATS = 3
"""Of each frame, to time it."""
_QUANTISED = (
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Concat", "Relu", "Clip", "Resize"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "DepthToSpace", "Reshape", "Transpose"),
)
"""Operators that compute in integers; pictures' normalisation and attention stay in floats."""

Feeds = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to run the model, on the run's test frames of the vehicle."""

    name: str
    miou: float
    frame_ms: float
    """The least time that a frame took on one core, without resizing: others' work only adds to it."""


def quantised(model: onnx.ModelProto, feeds: Sequence[Feeds]) -> onnx.ModelProto:
    """The model in int8, weights by channel, ranges the least and greatest over `feeds`.

    Raises:
        ExportError: ONNX Runtime can't quantise it; the message says why.
    """
    with tempfile.TemporaryDirectory() as folder, _quiet():
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self._feeds = iter(feeds)

            def get_next(self) -> Feeds | None:
                return next(self._feeds, None)

        given, folded, result = (Path(folder) / f"{name}.onnx" for name in ("given", "folded", "int8"))
        onnx.save(model, given)
        try:
            quant_pre_process(given, folded, skip_symbolic_shape=True)
            left_out = _left_out(onnx.load(folded).graph)
            quantization.quantize_static(
                folded,
                result,
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(_QUANTISED),
                nodes_to_exclude=left_out,
                per_channel=True,
                # Seven bits of weights: sums of pairs in 16 bits, as on x86 without VNNI, don't overflow.
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        except Exception as error:  # whatever stands in the way of ONNX Runtime's tools
            reason = " ".join(str(error).split())[:300]
            raise ExportError(f"ONNX Runtime {ort.__version__} can't quantise the model: {reason}") from error
        return onnx.load(result)


def _left_out(graph: onnx.GraphProto) -> list[str]:
    """Names of nodes that stay in floats: the rounding of features, and the convolution that reads pictures,
    whose three channels integers make slower, not faster."""
    rounding = [node.name for node in graph.node if node.name.startswith(ROUNDING)]
    if graph.input[0].name != IMAGE:
        return rounding
    return [*rounding, *[node.name for node in graph.node if node.op_type == "Conv"][:1]]


def calibration_feeds(served: Served, frames: TestFrames, encoder: bytes) -> tuple[list[Feeds], list[Feeds]]:
    """What encoder and model, and what the network, sees of the vehicle's train frames."""
    session = open_session(encoder, CPU, 1)
    images: list[Feeds] = [{IMAGE: frames.image(key)[None]} for key in frames.calibration]
    features: list[Feeds] = [
        {FEATURES: coded(session.run([FEATURES], image)[0], _own(served.coding))} for image in images
    ]
    return images, features


def compare_variants(
    served: Served, frames: TestFrames, floats: Mapping[str, bytes], integers: Mapping[str, bytes]
) -> list[Variant]:
    """Score and time the model and its halves, in floats and in integers.

    Args:
        floats, integers: graphs by part: `model`, `encoder`, `network`.
    """
    halves = {
        "int8 encoder": (integers["encoder"], floats["network"]),
        "int8 network": (floats["encoder"], integers["network"]),
    }
    sessions = {
        "float32": (open_session(floats["model"], CPU, 1),),
        "int8": (open_session(integers["model"], CPU, 1),),
        **{name: tuple(open_session(graph, CPU, 1) for graph in pair) for name, pair in halves.items()},
    }
    scores = {name: ConfusionMatrix(frames.label_space) for name in sessions}
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for key in frames.keys:
        image_1HWC, label_HW = frames.image(key)[None], frames.label(key)
        for name, parts in sessions.items():
            for _ in range(_REPEATS):
                start = time.perf_counter()
                if len(parts) == 1:
                    [logits_1Khw] = parts[0].run([LOGITS], {IMAGE: image_1HWC})
                else:
                    [features_1CHW] = parts[0].run([FEATURES], {IMAGE: image_1HWC})
                    features_1CHW = coded(features_1CHW, _own(served.coding))
                    [logits_1Khw] = parts[1].run([LOGITS], {FEATURES: features_1CHW})
                seconds[name].append(time.perf_counter() - start)
            scores[name].add(label_HW, likeliest(logits_1Khw[0], (label_HW.shape[0], label_HW.shape[1])))
    return [
        Variant(name=name, miou=scores[name].mean_iou(), frame_ms=1000 * min(seconds[name]))
        for name in sessions
    ]


def _own(coding: Coding | None) -> Coding | None:
    """How the features of a frame alone are rounded."""
    return None if coding is None else Coding(bits=coding.bits)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's remarks about itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
