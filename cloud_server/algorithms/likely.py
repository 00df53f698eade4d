"""Whether what a vehicle has made of the fleet's encoder looks like what the others have."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from statistics import median
from typing import Any

from cloud_server.algorithms.base import Context
from cloud_server.schedule import Stage
from protocol.plans.sharing import Sharing

log = logging.getLogger(__name__)

_FEWEST_OTHERS = 2
"""Vehicles that have to have moved before another can be told from them."""


class Likely:
    """How far each vehicle went in its latest turn that counted; vehicles compare within a bundle."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._most = context.config.way(Sharing).most_move
        self._moves: dict[str, float] = {}

    def bundle(self, vehicle: str) -> str:
        """What the vehicle's encoder began as."""
        return self._context.bundles.get(vehicle, "")

    def is_likely(self, vehicle: str, move: float, present: Mapping[str, float] | None = None) -> bool:
        """Whether `move` is at most `sharing.most_move` times the median of the others' latest ones.

        True where too few are known.

        Args:
            present: moves of the same stage by vehicle, which are newer.
        """
        others = {**self._moves, **(present or {})}
        known = [m for v, m in others.items() if v != vehicle and self.bundle(v) == self.bundle(vehicle)]
        usual = median(known) if len(known) >= _FEWEST_OTHERS else 0.0
        return usual == 0 or move <= self._most * usual

    def note(self, vehicle: str, move: float) -> None:
        """The vehicle's turn counts."""
        self._moves[vehicle] = move

    def leave_out(self, stage: Stage, vehicle: str, move: float) -> None:
        """Tell that the vehicle's turn does not."""
        log.warning(
            "what vehicle %s has made of the encoder in turn %d is left out: it does not look like that of "
            "the others (it moved %.3g)",
            vehicle,
            stage.number,
            move,
        )
        self._context.events.event("left-out", vehicle=vehicle, stage=stage.number, move=move)

    def meta(self) -> dict[str, Any]:
        """JSON types, for the checkpoint."""
        return {"moves": dict(self._moves)}

    def restore(self, meta: Mapping[str, Any]) -> None:
        """Become what `meta` was taken from."""
        self._moves = dict(meta.get("moves", {}))
