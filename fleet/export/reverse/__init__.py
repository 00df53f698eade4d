"""The way back through any ONNX graph of known operators, in plain inference operators."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx

from fleet.export.reverse.backward import Backward, ChannelSum, WayBack
from fleet.export.reverse.rules import RULES

__all__ = ["RULES", "ChannelSum", "WayBack", "derive"]


def derive(
    model: onnx.ModelProto,
    parameters: Mapping[str, tuple[int, ...]],
    output: str,
    *,
    by_channel: Mapping[str, ChannelSum] | None = None,
) -> WayBack:
    """The way back from `output` to the parameters that learn.

    Args:
        model: the forward graph; axis 0 of its values may be the batch, all other sizes are fixed.
        parameters: shapes of what learns, by the name of its initializer, in the order of θ. What does not
            depend on them is not differentiated.
        output: the value that v is the gradient of.
        by_channel: of these parameters p only one number for each channel along axis 0 is wanted: with
            "scale" Σ ∂/∂p·p over the channel, with "shift" Σ ∂/∂p.

    Raises:
        ExportError: an operator has no way back, or a parameter does not reach the output.
    """
    assert all(math.prod(shape) > 0 for shape in parameters.values())
    return Backward(model, tuple(parameters), by_channel or {}).run(output, parameters, RULES)
