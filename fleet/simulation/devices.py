"""Devices by name: how long a vehicle's computer, or the cloud, takes for what is computed.

Times are of one frame of the reference: the encoder `stride8-c8` at 256x192. Any other graph takes as much
longer as it has more multiply-adds.
"""

from __future__ import annotations

import msgspec

from protocol.charging import Computing
from protocol.errors import SettingError

_FORWARD_ADDS = 21_233_664
_WAY_BACK_ADDS = 37_158_912
_ELEMENTS = 8 * 24 * 32
_CELLS = 24 * 32


class DeviceProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Milliseconds of each kind of work, a frame of the reference each."""

    forward_ms: float = 0.0
    """Through the encoder, with its session for a new θ."""
    vjp_ms: float = 0.0
    """Back through it, to all of θ."""
    codec_ms: float = 0.0
    """Features into bytes."""
    network_ms: float = 0.0
    """Through the cloud's network, features of 32x24 cells; a step of training takes three of these."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if not 0 <= getattr(self, name) < float("inf"):
                raise SettingError(f"a device's {name} must be 0 or more, got {getattr(self, name)}")

    def slower(self, factor: float) -> DeviceProfile:
        """A device that takes `factor` times as long for everything."""
        return DeviceProfile(**{name: factor * getattr(self, name) for name in self.__struct_fields__})

    def seconds(self, kind: Computing, frames: int, amount: float) -> float:
        """For so many frames of so much work each, in the unit of its kind; 0 = not known: the reference."""
        ms, unit = {
            Computing.FORWARD: (self.forward_ms, _FORWARD_ADDS),
            Computing.WAY_BACK: (self.vjp_ms, _WAY_BACK_ADDS),
            Computing.CODEC: (self.codec_ms, _ELEMENTS),
            Computing.NETWORK: (self.network_ms, _CELLS),
        }[kind]
        return frames * ms / 1000 * (amount / unit if amount else 1.0)


CORE = DeviceProfile(forward_ms=0.66, vjp_ms=2.75, codec_ms=0.3, network_ms=2.5)
"""Measured: one core of a shared x86-64 server; a session rebuilt for each batch of eight."""

DEVICES = {
    "core": CORE,
    "agx-orin": CORE.slower(3.0),
    "orin-nano": CORE.slower(4.5),
    "car-cpu": CORE.slower(12.0),
    "instant": DeviceProfile(),
}
"""All but `core` are assumed: see docs/running.md."""
