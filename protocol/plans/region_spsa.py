"""Weights perturbed in each region of each frame: how a vehicle learns from forward passes, and what is said.

Legend: B frames of a batch, C channels, H W feature rows and columns.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from protocol.base import Draw, Index, Request
from protocol.codec.tensor import BITS, EncodedTensor
from protocol.plans.checks import EstimatorPlan

MOST_MOVES = 64
"""Of one query."""
LARGEST_REGION = 1024
"""Features along each side."""


class RegionSpsaPlan(EstimatorPlan, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="region_spsa"):
    """The encoder's weights are perturbed in another direction in each region of each frame; loss maps say
    what each has done there, Adam takes the steps. Forward passes alone."""

    section = "region_spsa"
    estimator = "region-spsa"

    perturbation: float = 0.01
    """c: how far what learns is moved for a query."""
    region: int = 8
    """Features along each side of a region. A query costs the vehicle a forward pass of each frame for each
    of its regions and moves, and one."""
    moves: int = 1
    """K: directions of each region of each frame for one update; features cross once for all of them, each
    move at `move_bits`."""
    move_bits: int = 3
    """Quantisation of the moves: 32, 8, 6, 4, 3 or 2 bits an element."""
    map_stride: int = 1
    """Feature cells that a cell of the loss map covers along each side; must divide the feature map."""
    map_bits: int = 8
    """Quantisation of the loss maps: 32, 8, 6, 4, 3 or 2 bits a cell."""
    margin: int = 0
    """Cells of the map around a region whose loss counts for it, too."""
    rate: float = 1e-3
    """Step size of Adam."""

    def __post_init__(self) -> None:
        self._above(0, "perturbation", "rate")
        self._at_least(1, "region", "moves", "map_stride")
        self._at_least(0, "margin")
        self._at_most(LARGEST_REGION, "region", "margin")
        self._at_most(MOST_MOVES, "moves")
        self._one_of(BITS, "move_bits", "map_bits")

    @property
    def answers_per_frame(self) -> int:
        return 1 + self.moves

    @property
    def needs_way_back(self) -> bool:
        return False


class MovedQuery(Request, frozen=True, array_like=True, kw_only=True, tag="moved"):
    """What are the loss maps at these features, and how do they differ between both sides of them?

    Answered by `LossMaps`; changes nothing in the cloud. What a move means only the vehicle knows."""

    answered_by = "LossMaps"

    frames: tuple[Index, ...]
    features: EncodedTensor
    moves: Annotated[tuple[EncodedTensor, ...], Meta(max_length=MOST_MOVES)]
    """K of them, each (B, C, H, W): d, asking for ℓ(z + d) − ℓ(z − d)."""
    map_size: tuple[int, int]
    """Rows and columns of the maps."""
    draw: Draw | None = None
    """By which draw of the augmentation the frames were seen; None = as they are."""
