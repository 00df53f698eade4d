"""How features are coded on their way to the cloud."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protocol.codec.bits import encode_within
from protocol.codec.tensor import BITS, EncodedTensor, encode
from protocol.errors import SettingError
from protocol.plans.checks import Section


class Coding(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bits of the features, and the most bytes that a frame's may take."""

    section = "coding"

    bits: int = 8
    """Quantisation of the features: 32, 8, 6, 4, 3 or 2 bits an element."""
    frame_bytes: int | None = None
    """Most bytes of a frame's features: each channel gets as many bits as fit, `bits` at most; None = all get
    `bits`."""

    def __post_init__(self) -> None:
        self._one_of(BITS, "bits")
        if self.frame_bytes is None:
            return
        self._at_least(1, "frame_bytes")
        if self.bits == 32:
            raise SettingError(
                f"{self.key('frame_bytes')} of {self.frame_bytes} needs bits of 8 or fewer, got 32, which no "
                f"channel can have by itself; set {self.key('bits')} to 8"
            )

    def encode(self, features_BCHW: NDArray[np.float32]) -> EncodedTensor:
        """Code features, float32.

        Raises:
            UncodableError: they are not finite.
            SettingError: they don't fit into so few bytes.
        """
        if self.frame_bytes is None:
            return encode(features_BCHW, self.bits)
        return encode_within(features_BCHW, bytes_per_frame=self.frame_bytes, most_bits=self.bits)
