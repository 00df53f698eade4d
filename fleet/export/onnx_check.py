"""Whether the graphs of an ONNX file's bundle compute what the file computes, and its derivative."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_client.encoder.bundle import EncoderBundle
from edge_client.encoder.runtime import Encoder
from edge_client.encoder.sessions import CPU
from fleet.export.errors import ExportError
from fleet.export.onnx_encoder import OnnxEncoder

TOLERANCE = 1e-5
"""Largest difference of graphs to what they were made from, relative to the largest element."""
_SLOPE_TOLERANCE = 0.02
"""The same of a derivative to a difference quotient in float32, along one direction."""
_DRAWS = 6
"""Directions, of which the median counts: at a kink the two rightly differ."""


def check_against_file(encoder: OnnxEncoder, bundle: EncoderBundle) -> None:
    """Features against those of the file itself, the way back against difference quotients.

    Raises:
        ExportError: they differ.
    """
    random = np.random.default_rng(0)
    width, height = bundle.spec.image_size
    image_BHWC = random.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    expected_BCHW = encoder.expected(image_BHWC)
    for mode in ("bind", "rebuild"):
        onnx_encoder = Encoder(bundle, mode=mode, providers=[CPU])
        found_BCHW = onnx_encoder.forward(bundle.theta0, image_BHWC)
        difference = relative_difference(found_BCHW, expected_BCHW)
        if not difference <= 10 * TOLERANCE:  # the file's own order of operations is another one
            raise ExportError(
                f"encoder {bundle.spec.name}: its features and those of the file differ by {difference:g} of "
                f"the largest element, more than {10 * TOLERANCE:g}; nothing was written"
            )
    if "vjp" in bundle.graphs:
        slopes = [_slope_difference(onnx_encoder, bundle, image_BHWC[:1], random) for _ in range(_DRAWS)]
        if not np.median(slopes) <= _SLOPE_TOLERANCE:
            raise ExportError(
                f"encoder {bundle.spec.name}: its derivative and a difference quotient differ by "
                f"{np.median(slopes):.1%}, more than {_SLOPE_TOLERANCE:.0%}; nothing was written"
            )


def _slope_difference(
    encoder: Encoder, bundle: EncoderBundle, image_BHWC: NDArray[np.uint8], random: np.random.Generator
) -> float:
    """Of ⟨features, v⟩ along the direction of its gradient, where a quotient has the most digits."""
    theta = bundle.theta0
    v_BCHW = random.standard_normal((1, *bundle.spec.feature_shape)).astype(np.float32)
    gradient = encoder.vjp(theta, image_BHWC, v_BCHW)
    length = float(np.linalg.norm(gradient))
    if length == 0:
        return np.inf
    step = np.float32(1e-3 * max(float(np.linalg.norm(theta)), 1e-3))
    direction = (gradient / np.float32(length)).astype(np.float32)
    values = [
        float(
            np.vdot(encoder.forward(theta + side * step * direction, image_BHWC).astype(np.float64), v_BCHW)
        )
        for side in (np.float32(1), np.float32(-1))
    ]
    return abs((values[0] - values[1]) / (2 * float(step)) - length) / length


def relative_difference(value: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """NaN where either has one."""
    return float(np.abs(value - expected).max() / np.abs(expected).max())
