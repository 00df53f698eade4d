"""How features are coded on their way to the cloud."""

from __future__ import annotations

from protocol.codec.tensor import BITS
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
