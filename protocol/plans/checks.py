"""What settings are made of, and how they say what is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import msgspec

from protocol.codec.tensor import BITS
from protocol.errors import SettingError

MOST_SEEDS = 1024
"""Of one query."""
LARGEST_BLOCK = 1024
"""Features along each side."""


def at_least(value: float, lowest: float, name: str) -> None:
    """Raise a `SettingError` that names the setting where it is lower."""
    if not value >= lowest:
        raise SettingError(f"{name} must be at least {lowest}, got {value}")


def at_most(value: float, highest: float, name: str) -> None:
    """Raise a `SettingError` that names the setting where it is higher."""
    if not value <= highest:
        raise SettingError(f"{name} must be at most {highest}, got {value}")


def above(value: float, limit: float, name: str) -> None:
    """Raise a `SettingError` that names the setting where it is not above the limit."""
    if not value > limit:
        raise SettingError(f"{name} must be above {limit}, got {value}")


def share_below_one(value: float, name: str) -> None:
    """Raise a `SettingError` that names the setting where it is not from 0 to 1, 1 excluded."""
    if not 0 <= value < 1:
        raise SettingError(f"{name} must be at least 0 and below 1, got {value}")


def one_of(value: object, choices: Iterable[object], name: str) -> None:
    """Raise a `SettingError` that names the setting where it is none of the choices."""
    choices = tuple(choices)
    if value not in choices:
        raise SettingError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of settings in a scenario, in the cloud's settings, and in a turn that needs them.

    It checks itself when it is built, wherever it comes from; unknown keys are refused.
    """

    section: ClassVar[str] = ""
    """The key under which it stands."""

    def key(self, name: str) -> str:
        """What users know one of its settings by."""
        return f"{self.section}.{name}" if self.section else name

    def _at_least(self, lowest: float, *names: str) -> None:
        """Check some settings; one that is None is not given."""
        for name in names:
            if getattr(self, name) is not None:
                at_least(getattr(self, name), lowest, self.key(name))

    def _above(self, limit: float, *names: str) -> None:
        """Check some settings; one that is None is not given."""
        for name in names:
            if getattr(self, name) is not None:
                above(getattr(self, name), limit, self.key(name))

    def _at_most(self, highest: float, *names: str) -> None:
        for name in names:
            at_most(getattr(self, name), highest, self.key(name))

    def _share_below_one(self, *names: str) -> None:
        for name in names:
            share_below_one(getattr(self, name), self.key(name))

    def _one_of(self, choices: Iterable[object], *names: str) -> None:
        for name in names:
            one_of(getattr(self, name), choices, self.key(name))


class Way(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one way of learning, or of one algorithm: a file of this folder, and no line elsewhere."""


class Plan(Way, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a vehicle is to learn in a turn, which carries it; its tag is the key of its section."""


class EstimatorPlan(Plan, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a vehicle turns the cloud's answers about a batch into a gradient."""

    estimator: ClassVar[str] = ""
    """What `zeroth_order.estimator` names it by."""
    needs_local_head: ClassVar[bool] = False
    """Whether the vehicle must have a local head, one whose normalisation is fixed."""

    knows_targets: ClassVar[bool] = False
    """Whether the vehicle computes losses by itself, of what the cloud's are of."""
    steps_by_seeds: ClassVar[bool] = False
    """Whether a step follows from seeds and losses alone, so that any vehicle can take it."""

    @property
    def answers_per_frame(self) -> int:
        """Losses or loss maps that one pass takes about each frame."""
        raise NotImplementedError

    @property
    def needs_way_back(self) -> bool:
        """Whether it takes the bundle's VJP; else it takes forward passes alone."""
        return True


class LossMapPlan(EstimatorPlan, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One that asks for loss maps at perturbed features."""

    scale: float = 0.1
    """s: how far features are moved for a query, in standard deviations of their channel."""
    seeds: int = 16
    """K: perturbations averaged for one update; the features cross the network once for all of them."""
    two_sided: bool = False
    """Differences between +ξ and −ξ, rather than between +ξ and the clean features: less noise, twice the
    cloud's work, the same bytes."""
    block: int = 1
    """Features along each side of a square that is moved as one: b² times fewer directions to tell apart."""
    map_stride: int = 1
    """Feature cells that a cell of the loss map covers along each side; must divide the feature map."""
    map_bits: int = 8
    """Quantisation of the loss maps: 32, 8, 6, 4, 3 or 2 bits a cell."""
    box_width: int = 5
    """Side, in cells of the map and odd, of the window whose loss counts for the features in its middle."""
    rate: float = 1e-3
    """Step size of Adam."""
    forward_passes: int = 0
    """Forward passes of a frame, at weights around, by which the gradient at the features becomes that of
    what learns: for encoders without a VJP. 0 = by the VJP."""
    forward_distance: float = 0.01
    """How far what learns is moved for these."""

    def __post_init__(self) -> None:
        self._above(0, "scale", "rate", "forward_distance")
        self._at_least(0, "forward_passes")
        self._at_least(1, "seeds", "map_stride", "block")
        self._at_most(MOST_SEEDS, "seeds")
        self._at_most(LARGEST_BLOCK, "block")
        self._one_of(BITS, "map_bits")
        if self.box_width < 1 or self.box_width % 2 == 0:
            raise SettingError(f"{self.key('box_width')} must be odd and at least 1, got {self.box_width}")

    @property
    def answers_per_frame(self) -> int:
        return 1 + self.seeds

    @property
    def needs_way_back(self) -> bool:
        return self.forward_passes == 0
