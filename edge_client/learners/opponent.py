"""Features that a decoder can't read: it learns to paint frames from them, the encoder not to let it.

The decoder is the vehicle's own, and nothing of it leaves it.
Legend: B frames, C channels, H W feature rows and columns, h w picture rows and columns; φ the decoder's
parameters, float32 (n,).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edge_client.local.against_decoder import AgainstDecoder
from edge_client.optimizers import Adam

Arrays = dict[str, NDArray[np.generic]]

STEPS = 3
"""Of the decoder before each of the encoder: one that lags behind is deceived, and another one isn't."""
RATE = 5e-3
"""Adam's step size on the decoder."""
LEAST_ERROR = 1e-4
"""Of pixels from 0 to 1, squared: below it the encoder is pushed no harder."""
_PARAMETERS = "parameters"


class Opponent:
    """φ and its optimizer on their way through a turn."""

    def __init__(self, against: AgainstDecoder, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """`arrays`: what `state` gave at the end of the turn before; of another decoder, or none: it starts
        anew."""
        self._decoder, self._weight = against.decoder, against.weight
        self._adam = Adam(RATE)
        self._parameters = against.decoder.initial
        kept = arrays.get(_PARAMETERS)
        if kept is not None and kept.shape == self._parameters.shape:
            self._parameters = kept.astype(np.float32)
            self._adam.load_state_arrays({n: each for n, each in arrays.items() if n != _PARAMETERS})

    def push(self, features_BCHW: NDArray[np.float32], image_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Let the decoder learn from a batch, then the gradient of −λ·log(its mean squared error) at the
        features."""
        _, height, width = self._decoder.spec.logit_shape
        picture_B3hw = shrunk(image_BHWC, (height, width))
        for _ in range(STEPS):
            _, gradient, _ = self._judge(features_BCHW, picture_B3hw)
            self._parameters = self._adam.step(self._parameters, gradient)
        error, _, features_gradient_BCHW = self._judge(features_BCHW, picture_B3hw)
        return features_gradient_BCHW * np.float32(-self._weight / (error + LEAST_ERROR))

    def _judge(
        self, features_BCHW: NDArray[np.float32], picture_B3hw: NDArray[np.float32]
    ) -> tuple[float, NDArray[np.float32], NDArray[np.float32]]:
        """The decoder's mean squared error, and its gradients for φ and for the features."""
        painted = self._decoder.linearise(self._parameters, features_BCHW)
        wrong_B3hw = painted.logits_BKhw - picture_B3hw
        gradient, features_gradient_BCHW = painted.pull_back(wrong_B3hw * np.float32(2 / wrong_B3hw.size))
        return float(np.mean(wrong_B3hw**2, dtype=np.float64)), gradient, features_gradient_BCHW

    def state(self) -> Arrays:
        """What the next turn starts from."""
        return {_PARAMETERS: self._parameters, **self._adam.state_arrays()}


def shrunk(image_BHWC: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """RGB −0.5 to 0.5 float32 (B, 3, h, w): means over the blocks of pixels behind each cell."""
    frames, height, width, _ = image_BHWC.shape
    rows, columns = size_hw
    blocks = image_BHWC.reshape(frames, rows, height // rows, columns, width // columns, 3)
    mean_Bhw3 = blocks.mean(axis=(2, 4), dtype=np.float32)
    return np.ascontiguousarray(mean_Bhw3.transpose(0, 3, 1, 2) / np.float32(255) - np.float32(0.5))
