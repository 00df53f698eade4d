"""What becomes of a vehicle whose train frames contradict what the network has learnt from all others, or say
nothing."""

from __future__ import annotations

from protocol.plans.checks import Way

QUARANTINES = ("none", "watch", "leave-out")


class Trust(Way, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which vehicles the cloud's network learns from, where features and labels cross."""

    section = "trust"

    quarantine: str = "none"
    """`none`: from everyone. `watch`: turns that look like a liar's are told. `leave-out`: the network learns
    nothing from them, either. Each turn is looked at by itself, so that nobody is left out for good."""
    agreement: float = 0.25
    """A turn looks like a liar's where the network, before it learns from the vehicle's train frames, agrees
    with their labels less than this share of what is usual of the others (Cohen's κ, their median)."""
    explained: float = 0.01
    """It does as well where features explain less than this share of what sets the vehicle's frames apart
    (a linear probe); 0 = nobody is judged by it."""
    frames: int = 16
    """Train frames of each turn that are looked at."""

    def __post_init__(self) -> None:
        self._one_of(QUARANTINES, "quarantine")
        self._share_below_one("agreement", "explained")
        self._at_least(1, "frames")

    @property
    def is_on(self) -> bool:
        """Whether anything is looked at."""
        return self.quarantine != "none"
