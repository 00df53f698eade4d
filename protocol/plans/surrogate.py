"""A model of the cloud's network on the vehicle, fitted to the loss maps that come back.

What is said for it is what is said for perturbed features: `SeededQuery` and `LossMaps`.
"""

from __future__ import annotations

from typing import ClassVar

from protocol.plans.checks import LossMapPlan


class SurrogatePlan(LossMapPlan, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="surrogate"):
    """A small head on the vehicle is fitted to the cloud's loss maps, clean and perturbed; its exact
    gradient, and the zeroth-order estimate of what it misses, drive Adam."""

    section = "surrogate"
    estimator = "surrogate"
    needs_local_head: ClassVar[bool] = True
    knows_targets: ClassVar[bool] = True

    seeds: int = 1
    """K: perturbations of one query; the features cross the network once for all of them."""
    block: int = 8
    """Features along each side of a square that is moved as one: b² times fewer directions to tell apart."""
    map_bits: int = 6
    """Quantisation of the loss maps: 32, 8, 6, 4, 3 or 2 bits a cell."""
    fit_steps: int = 4
    """Steps of Adam by which the head is fitted to each answer."""
    fit_rate: float = 3e-3
    """Step size of that Adam."""
    replay_frames: int = 256
    """Most frames whose earlier answers in the turn are kept in the vehicle's memory; each step of the fit is
    then followed by one on an answer drawn from them. 0 = none are kept."""
    correction: float = 0.5
    """λ: weight of the zeroth-order estimate of the head's error. 1 = none of it is left on average; less is
    less noise, which few seeds have much of; 0 = the head's gradient alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(0, "fit_steps", "replay_frames", "correction")
        self._above(0, "fit_rate")
