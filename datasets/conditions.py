"""Weather and camera faults put on driving frames: what a vehicle's camera sees on a bad day.

Labels stay as they are. The same seed gives the same day: dirt on the lens, the place of the sun and the
camera's colours belong to the seed, raindrops and noise to the single frame.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datasets import effects
from datasets.draws import StableDraws
from datasets.effects import Effect
from protocol.errors import SettingError

MAX_SEVERITY = 5

CONDITIONS: dict[str, Effect] = {
    "fog": effects.fog,
    "rain": effects.rain,
    "night": effects.night,
    "low_sun": effects.low_sun,
    "motion_blur": effects.motion_blur,
    "lens_dirt": effects.lens_dirt,
    "colour_cast": effects.colour_cast,
}
"""Every condition by name; severities go from 1, which is hard to see, to 5, in which a driver would stop."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What happens to a vehicle's frames.

    Raises:
        SettingError: the name is unknown or the severity out of range; the message lists what there is.
    """

    name: str
    severity: int = 3
    """1 to 5."""

    def __post_init__(self) -> None:
        if self.name not in CONDITIONS:
            raise SettingError(f"unknown condition {self.name!r}, expected one of: {', '.join(CONDITIONS)}")
        if isinstance(self.severity, bool) or not isinstance(self.severity, int):
            raise SettingError(f"severity of {self.name} must be an integer, got {self.severity!r}")
        if not 1 <= self.severity <= MAX_SEVERITY:
            raise SettingError(f"severity of {self.name} must be 1 to {MAX_SEVERITY}, got {self.severity}")

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read `fog:3`, or `fog` for the middle severity.

        Raises:
            SettingError: the text is not of this form, or the name or severity is wrong.
        """
        name, colon, severity = text.strip().partition(":")
        if not colon:
            return cls(name)
        if not severity.isascii() or not severity.isdigit():
            raise SettingError(f"condition must be NAME:SEVERITY such as fog:3, got {text!r}")
        return cls(name, int(severity))

    def __str__(self) -> str:
        return f"{self.name}:{self.severity}"


def apply_condition(
    image_HWC: NDArray[np.uint8], condition: str, severity: int, seed: int, frame_key: str
) -> NDArray[np.uint8]:
    """Return a picture as it would look under a condition.

    Args:
        image_HWC: uint8 RGB, at least 8x8; left as it is.
        condition: a name of `CONDITIONS`.
        severity: 1 to 5.
        seed: decides what lasts (the vehicle's seed).
        frame_key: name of the frame; decides, with the seed, what changes from frame to frame.

    Raises:
        SettingError: condition or severity is not as described.
        ValueError: the picture is not.
    """
    Condition(condition, severity)
    if image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or min(image_HWC.shape[:2]) < 8:
        raise ValueError(f"image must be RGB [H, W, 3] of at least 8x8 pixels, got {image_HWC.shape}")
    lasting, passing = (_draws(seed, condition, part) for part in ("", frame_key))
    changed = CONDITIONS[condition](image_HWC.astype(np.float32), severity - 1, lasting, passing)
    image: NDArray[np.uint8] = np.clip(changed + np.float32(0.5), 0, 255).astype(np.uint8)
    return image


def _draws(seed: int, *parts: str) -> StableDraws:
    # The lengths keep ("a", "bc") and ("ab", "c") apart.
    text = ",".join([str(seed), *(f"{len(part)}:{part}" for part in parts)])
    return StableDraws(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big"))
