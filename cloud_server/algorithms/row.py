"""What the project knows of an algorithm besides its code: a row of `cloud_server.algorithms.table`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cloud_server.algorithms.base import Algorithm, Context


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What an operator brings before the run starts; everyone needs frames."""

    local_head: bool = False
    """Each vehicle has a head by which it learns from its own labels."""
    whole_network: bool = False
    """Each vehicle has the whole network as programs, trains and judges it by itself, and so needs torch; all
    have one encoder."""


@dataclass(frozen=True, kw_only=True)
class AlgorithmRow:
    """One algorithm: how it is built, and its traits, which the cloud and the operator read."""

    name: str
    """What `algorithm` in the settings says."""
    title: str
    """What a person chooses by, in a few words."""
    build: Callable[[Context], Algorithm] | None
    """Makes it, in the cloud; None: it needs no fleet, the operator has all frames in one place."""
    colour: str
    """In charts: `#rrggbb`."""
    needs: Needs = Needs()
    in_one_piece: bool = False
    """It trains encoder and network as one, on labels alone: neither can stay as it is."""
    cloud_rests: bool = False
    """The cloud's network does next to nothing during a turn: every core may be a vehicle's."""
