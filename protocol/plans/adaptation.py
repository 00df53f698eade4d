"""What every way of learning an encoder has in common: what learns, to lower what, how far from its start."""

from __future__ import annotations

from protocol.plans.checks import Section


class Adaptation(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of an encoder learns, to lower what, and how far from its start it may go."""

    section = "adaptation"

    subspace: str = "all"
    """What of an encoder learns: `all`, or `film`: a scale and a bias of each output channel."""
    objective: str = "labels"
    """What vehicles learn to lower: `labels`, the loss against the labels of their train frames, or
    `entropy`, that of the cloud's own predictions, for which no train label is sent."""
    anchor: float = 0.0
    """λ of the penalty λ/2·‖φ − φ_start‖² on how far a vehicle's encoder goes from its start, which is its
    bundle's."""

    def __post_init__(self) -> None:
        self._one_of(("all", "film"), "subspace")
        self._one_of(("labels", "entropy"), "objective")
        self._at_least(0, "anchor")
