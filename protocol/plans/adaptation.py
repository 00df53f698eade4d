"""What every way of learning an encoder has in common: what learns, to lower what, how far from its start."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from protocol.plans.checks import Section

SubspaceName = Literal["all", "film", "projection", "projection+film"]
"""A part of an encoder's parameters that can learn, the others staying as they start."""
SUBSPACES: tuple[SubspaceName, ...] = get_args(SubspaceName)

OBJECTIVES = ("labels", "entropy", "pseudo-labels")
"""What `adaptation.objective` may name."""


class Adaptation(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of an encoder learns, to lower what, and how far from its start it may go."""

    section = "adaptation"

    subspace: str | None = None
    """What of an encoder learns: `all`; `film`: a scale and a bias of each output channel; `projection`: its
    last layers, where it says which they are; or `projection+film`. None = as the encoder says: pretrained
    ones `projection+film`, all others `all`."""
    objective: str = "labels"
    """What vehicles learn to lower: `labels`, the loss against the labels of their train frames; `entropy`,
    that of the cloud's own predictions; or `pseudo-labels`, the loss against those of its predictions that
    were sure before the turn. For the last two no train label is sent."""
    anchor: float = 0.0
    """λ of the penalty λ/2·‖φ − φ_start‖² on how far a vehicle's encoder goes from its start, which is its
    bundle's."""

    def __post_init__(self) -> None:
        if self.subspace is not None:
            self._one_of(SUBSPACES, "subspace")
        self._one_of(OBJECTIVES, "objective")
        self._at_least(0, "anchor")

    def of_encoder(self, subspace: str) -> Adaptation:
        """The same with the subspace named: where it isn't yet, the one that an encoder says."""
        return self if self.subspace is not None else msgspec.structs.replace(self, subspace=subspace)
