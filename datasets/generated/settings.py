"""What defines a generated data set: how many frames, how large, from which seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from protocol.errors import SettingError

MIN_SIDE_PX = 32
MAX_SIDE_PX = 4096


@dataclass(frozen=True, kw_only=True)
class GeneratorSettings:
    """Size and seed of a generated data set; equal settings give equal frames.

    Raises:
        SettingError: a value is out of its range; the message names it and the range.
    """

    cities: int = 4
    """Number of cities; each has its own buildings, greenery, light and camera."""
    sequences_per_city: int = 1
    """Number of drives through each city, each along its own street."""
    frames_per_sequence: int = 60
    """Number of consecutive frames of each drive."""
    image_size: tuple[int, int] = (256, 192)
    """(width, height) in pixels."""
    seed: int = 0
    """Any integer from 0 to 2**63 - 1."""

    def __post_init__(self) -> None:
        for name in ("cities", "sequences_per_city", "frames_per_sequence"):
            _check_integer(name, getattr(self, name), 1, 100_000)
        _check_integer("seed", self.seed, 0, 2**63 - 1)
        if not isinstance(self.image_size, tuple) or len(self.image_size) != 2:
            raise SettingError(f"image_size must be (width, height), got {self.image_size!r}")
        for name, side in zip(("image width", "image height"), self.image_size, strict=True):
            _check_integer(name, side, MIN_SIDE_PX, MAX_SIDE_PX)

    @property
    def frame_count(self) -> int:
        """Number of frames in the whole data set."""
        return self.cities * self.sequences_per_city * self.frames_per_sequence


def _check_integer(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SettingError(f"{name} must be an integer from {low} to {high}, got {value!r}")
