"""What the cloud makes of a vehicle's present frames, labels aside, while its own network stays."""

from __future__ import annotations

from protocol.errors import SettingError
from protocol.plans.checks import Way


class Present(Way, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of each vehicle's train frames, whose features come up for it once more in each turn."""

    section = "present"

    statistics: float = 0.0
    """Share that the vehicle's own frames have in BatchNorm's means and variances, in what it is answered
    with and served by; the rest is the start's. 0 = the start's alone, 1 = their own alone (AdaBN)."""
    confidence: float = 0.8
    """With `adaptation.objective: pseudo-labels`: a pixel has one where its likeliest class has at least this
    probability; the others are void."""
    momentum: float = 0.5
    """With `pseudo-labels`: share of what was likely before a turn in what is likely after it, which the next
    labels are made of. 0 = they are those of the latest turn alone."""
    guard: float = 0.0
    """A turn does not count, and the vehicle goes back to where it was before it, if predictions for these
    frames agree less than this with those at the beginning, as a mean over classes of intersection over
    union. 0 = every turn counts."""

    def __post_init__(self) -> None:
        for name in ("statistics", "confidence", "guard"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingError(f"{self.key(name)} must be from 0 to 1, got {getattr(self, name)}")
        self._share_below_one("momentum")
