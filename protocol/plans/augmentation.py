"""How train frames are varied each time that somebody learns from them."""

from __future__ import annotations

from protocol.errors import SettingError
from protocol.plans.checks import Section

_SMALLEST_CROP = 0.1


class Augmentation(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Random views of train frames, drawn anew for each pass over them; labels alike. Nothing else is varied:
    no frame that is validated or tested on."""

    section = "augmentation"

    flip: bool = False
    """Mirror every other frame, left to right."""
    crop: float = 0.0
    """Cut a box out of each frame and enlarge it to the frame's size: smallest share of a side, from 0.1 to
    below 1; 0 = whole frames."""
    jitter: float = 0.0
    """Scale brightness, contrast and saturation by factors from 1 − jitter to 1 + jitter, below 1; the label
    stays."""

    def __post_init__(self) -> None:
        self._share_below_one("crop", "jitter")
        if 0 < self.crop < _SMALLEST_CROP:
            raise SettingError(
                f"{self.key('crop')} must be 0 (whole frames) or at least {_SMALLEST_CROP}, got {self.crop:g}"
            )

    @property
    def is_on(self) -> bool:
        """Whether frames are varied at all."""
        return self.flip or self.crop > 0 or self.jitter > 0
