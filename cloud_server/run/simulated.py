"""What a simulation of links and devices adds to what is told of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Simulated(Protocol):
    """The simulation, as the cloud knows it."""

    def stamp(self) -> Mapping[str, Any]:
        """What every event tells besides: `virtual_s`."""

    def kept(self) -> Mapping[str, Any]:
        """What a run that goes on after a kill has to know of it, as JSON types."""

    def go_on(self, kept: Mapping[str, Any]) -> None:
        """Be where it was when this was `kept`."""

    def add_to(self, result: dict[str, Any]) -> None:
        """Put the run's virtual time into its result, and what became of each vehicle's."""
