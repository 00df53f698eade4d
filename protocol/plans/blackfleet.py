"""What only the algorithm `blackfleet` can be told."""

from __future__ import annotations

from protocol.plans.checks import Way

SERVINGS = ("best", "latest", "statistics")
"""What `blackfleet.serving` may name."""


class BlackFleetSettings(Way, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`blackfleet` only."""

    section = "blackfleet"

    serving: str = "best"
    """Which weights of the cloud's network predict for a vehicle: `best`, those that did best on its
    validation frames; `latest`, the same for all; or `statistics`, the latest with BatchNorm statistics of
    its own train features (AdaBN, Li et al., 2017)."""

    def __post_init__(self) -> None:
        self._one_of(SERVINGS, "serving")
