"""Per-channel affine quantisation of features, at one number of bits after another.

Shapes: B batch, C channel, H and W rows and columns of the feature map, N elements and P bytes of a channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from protocol.codec.packing import pack
from protocol.errors import BlackfleetError

_FLOAT32_TINY = np.finfo(np.float32).tiny
_LARGEST = 1e38


@dataclass(frozen=True, kw_only=True)
class CodedChannels:
    """All channels of a tensor at one number of bits, ready for the Huffman code."""

    packed_CP: npt.NDArray[np.uint8]
    scale_C: npt.NDArray[np.float32]
    squared_error_C: npt.NDArray[np.float64]
    """Summed over the elements; zeros where it was not asked for."""


class UncodableError(BlackfleetError):
    """Numbers that can't be sent: not finite, or too many for the bytes that they may take."""


class Quantiser:
    """Features whose values were checked and whose channels' ranges are known.

    Raises UncodableError for NaN or infinity, ValueError for any but a non-empty float32 tensor BCHW.
    """

    def __init__(self, features_BCHW: npt.NDArray[np.float32]) -> None:
        if features_BCHW.ndim != 4 or features_BCHW.dtype != np.float32 or features_BCHW.size == 0:
            got = f"{features_BCHW.dtype} {features_BCHW.shape}"
            raise ValueError(f"features must be a non-empty float32 tensor BCHW, got {got}")
        low_C = features_BCHW.min(axis=(0, 2, 3))
        high_C = features_BCHW.max(axis=(0, 2, 3))
        # min and max carry NaN along, so that the tensor itself need not be searched.
        if not (low_C.min() >= -_LARGEST and high_C.max() <= _LARGEST):
            raise UncodableError(
                f"features must be finite and within ±{_LARGEST:g}, got {low_C.min()} to {high_C.max()}"
            )
        batch, channels, height, width = features_BCHW.shape
        self.shape = (batch, channels, height, width)
        self.low_C = low_C
        self._range_C = high_C - low_C
        self._features_CBHW = features_BCHW.transpose(1, 0, 2, 3)

    @cached_property
    def _above_low_CN(self) -> npt.NDArray[np.float32]:
        above_low_CBHW: npt.NDArray[np.float32] = self._features_CBHW - self.low_C[:, None, None, None]
        return above_low_CBHW.reshape(len(above_low_CBHW), -1)

    def code(self, bits: int, *, with_error: bool = False) -> CodedChannels:
        """Quantise all channels to 2^bits levels over their ranges and pack them."""
        levels = np.float32((1 << bits) - 1)
        scale_C = self._range_C / levels
        scale_C[scale_C < _FLOAT32_TINY] = 0  # a subnormal scale would be too coarse
        steps_CN = self._above_low_CN / np.where(scale_C > 0, scale_C, np.float32(1))[:, None]
        np.rint(steps_CN, out=steps_CN)
        np.minimum(steps_CN, levels, out=steps_CN)
        packed_CP = pack(steps_CN.astype(np.uint8), bits)
        squared_error_C = np.zeros(len(scale_C))
        if with_error:
            steps_CN *= scale_C[:, None]
            steps_CN -= self._above_low_CN
            squared_error_C = np.einsum("cn,cn->c", steps_CN, steps_CN, dtype=np.float64)
        return CodedChannels(packed_CP=packed_CP, scale_C=scale_C, squared_error_C=squared_error_C)
