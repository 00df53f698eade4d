"""The ONNX graphs of a served model: encoder, rounding of the features, network, likeliest class.

Legend: B frames, C channels, H W rows and columns, K classes, h w logit rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper, version_converter
from torch import nn

from edge_client.predict.card import FEATURES, IDS, IMAGE, LOGITS
from fleet.export.errors import ExportError
from fleet.export.modules import quiet_exporter

OPSET = 18
_PRODUCER = "blackfleet"
_ENCODER = "encoder/"
_NETWORK = "network/"
ROUNDING = "rounding/"
"""What the names of the nodes between the two begin with."""
_TRACED_FRAMES = 2
_TINY = np.finfo(np.float32).tiny


def network_model(network: nn.Module, feature_shape: tuple[int, int, int]) -> onnx.ModelProto:
    """A network in evaluation mode, features_BCHW to logits_BKhw, for any batch.

    Raises:
        ExportError: torch can't export it; the message says why.
    """
    features_BCHW = torch.zeros(_TRACED_FRAMES, *feature_shape)
    try:
        with quiet_exporter(), torch.random.fork_rng(devices=[]):
            program = torch.onnx.export(
                network,
                (features_BCHW,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("B")},),
                opset_version=OPSET,
                input_names=[FEATURES],
                output_names=[LOGITS],
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # whatever stands in the way of torch's exporter
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"torch can't export the cloud's network to ONNX: {reason}") from error
    assert program is not None
    with torch.inference_mode():
        logits_shape = network(features_BCHW).shape[1:]
    model: onnx.ModelProto = program.model_proto
    return _finished(
        list(model.graph.node),
        list(model.graph.initializer),
        inputs=[(FEATURES, TensorProto.FLOAT, ["B", *feature_shape])],
        outputs=[(LOGITS, TensorProto.FLOAT, ["B", *logits_shape])],
        opset=_opset(model),
    )


def encoder_model(encoder: bytes) -> onnx.ModelProto:
    """An encoder's forward graph, image_BHWC to features_BCHW, of the opset of the others."""
    model = onnx.load_from_string(encoder)
    if _opset(model) < OPSET:
        model = version_converter.convert_version(model, OPSET)
    return _finished(
        list(model.graph.node),
        list(model.graph.initializer),
        inputs=[_value(model.graph.input[0])],
        outputs=[_value(model.graph.output[0])],
        opset=_opset(model),
    )


def whole_model(
    encoder: onnx.ModelProto, network: onnx.ModelProto, *, bits: int | None, logits: bool
) -> onnx.ModelProto:
    """Encoder and network as one: image_BHWC uint8 to ids_Bhw uint8, and logits_BKhw where wanted.

    Args:
        encoder, network: of `encoder_model` and `network_model`.
        bits: what features are rounded to between them, the channels of each frame by themselves, as
            `protocol.codec` does for a message of one frame; None: not at all.
        logits: whether they are an output, too.
    """
    opset = max(_opset(encoder), _opset(network))
    encoder, network = (
        compose.add_prefix(
            version_converter.convert_version(part, opset) if _opset(part) < opset else part,
            prefix,
            rename_inputs=True,
            rename_outputs=True,
        )
        for part, prefix in ((encoder, _ENCODER), (network, _NETWORK))
    )
    rounding, constants = _rounding(bits)
    end = [
        helper.make_node("ArgMax", [_NETWORK + LOGITS], ["classes"], axis=1, keepdims=0),
        helper.make_node("Cast", ["classes"], [IDS], to=TensorProto.UINT8),
    ]
    if logits:
        end.append(helper.make_node("Identity", [_NETWORK + LOGITS], [LOGITS]))
    begin = [helper.make_node("Identity", [IMAGE], [_ENCODER + IMAGE])]
    _, _, (batch, _, height, width) = _value(network.graph.output[0])
    _, kind, image_shape = _value(encoder.graph.input[0])
    outputs: list[tuple[str, int, Sequence[str | int]]] = [(IDS, TensorProto.UINT8, [batch, height, width])]
    if logits:
        outputs.append((LOGITS, TensorProto.FLOAT, _value(network.graph.output[0])[2]))
    return _finished(
        [*begin, *encoder.graph.node, *rounding, *network.graph.node, *end],
        [*encoder.graph.initializer, *constants, *network.graph.initializer],
        inputs=[(IMAGE, kind, image_shape)],
        outputs=outputs,
        opset=opset,
    )


def without_logits(model: bytes) -> bytes:
    """The model's bytes, its ids the only output."""
    shortened = onnx.load_from_string(model)
    kept = [output for output in shortened.graph.output if output.name != LOGITS]
    del shortened.graph.output[:]
    shortened.graph.output.extend(kept)
    serialised: bytes = shortened.SerializeToString(deterministic=True)
    return serialised


def with_metadata(model: onnx.ModelProto, properties: Mapping[str, str]) -> bytes:
    """The model's bytes with these in its metadata, the same for the same arguments."""
    del model.metadata_props[:]
    helper.set_model_props(model, dict(properties))
    serialised: bytes = model.SerializeToString(deterministic=True)
    return serialised


def _rounding(bits: int | None) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes from the encoder's features to the network's."""
    before, after = _ENCODER + FEATURES, _NETWORK + FEATURES
    if bits is None:
        return [helper.make_node("Identity", [before], [after])], []
    constants: dict[str, NDArray[Any]] = {
        "rounding/axes": np.array([2, 3], np.int64),
        "rounding/levels": np.array((1 << bits) - 1, np.float32),
        "rounding/tiny": np.array(_TINY, np.float32),
        "rounding/zero": np.array(0, np.float32),
        "rounding/one": np.array(1, np.float32),
    }
    low, high, scale = "rounding/low", "rounding/high", "rounding/scale"
    nodes = [
        helper.make_node("ReduceMin", [before, "rounding/axes"], [low], keepdims=1),
        helper.make_node("ReduceMax", [before, "rounding/axes"], [high], keepdims=1),
        helper.make_node("Sub", [high, low], ["rounding/range"]),
        helper.make_node("Div", ["rounding/range", "rounding/levels"], ["rounding/step"]),
        helper.make_node("Less", ["rounding/step", "rounding/tiny"], ["rounding/is_constant"]),
        helper.make_node("Where", ["rounding/is_constant", "rounding/zero", "rounding/step"], [scale]),
        helper.make_node("Where", ["rounding/is_constant", "rounding/one", "rounding/step"], ["rounding/by"]),
        helper.make_node("Sub", [before, low], ["rounding/above"]),
        helper.make_node("Div", ["rounding/above", "rounding/by"], ["rounding/exact"]),
        helper.make_node("Round", ["rounding/exact"], ["rounding/rounded"]),
        helper.make_node("Min", ["rounding/rounded", "rounding/levels"], ["rounding/steps"]),
        helper.make_node("Mul", ["rounding/steps", scale], ["rounding/scaled"]),
        helper.make_node("Add", ["rounding/scaled", low], [after]),
    ]
    for number, node in enumerate(nodes):
        node.name = f"{ROUNDING}{number}"
    return nodes, [numpy_helper.from_array(value, name) for name, value in constants.items()]


def _opset(model: onnx.ModelProto) -> int:
    return max(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _value(info: onnx.ValueInfoProto) -> tuple[str, int, list[str | int]]:
    kind = info.type.tensor_type
    shape = [size.dim_param or size.dim_value for size in kind.shape.dim]
    return info.name, kind.elem_type, shape


def _finished(
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[onnx.TensorProto],
    *,
    inputs: Sequence[tuple[str, int, Sequence[str | int]]],
    outputs: Sequence[tuple[str, int, Sequence[str | int]]],
    opset: int,
) -> onnx.ModelProto:
    """The checked model, with a name for every node: tools that are to leave one out go by names."""
    for number, node in enumerate(nodes):
        node.name = node.name or f"{node.op_type}_{number}"
    graph = helper.make_graph(
        list(nodes),
        _PRODUCER,
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        list(initializers),
    )
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(
        graph,
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name=_PRODUCER,
    )
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ExportError(
            f"the model's graph is not plain ONNX: {' '.join(str(error).split())[:300]}"
        ) from error
    return model
