"""Vehicles that come back to a run that went on without them, or that come late: from the next round on.

A round is as it began: what the cloud makes of it has been told to those who take part. Who has never been
there before brings frames that nothing was planned for, so that the run is planned anew from its last commit.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from cloud_server.desk.registry import Registry
from cloud_server.desk.roster import Roster
from cloud_server.events import Events
from cloud_server.schedule import Stage

log = logging.getLogger(__name__)


class Readmission:
    """Who of those that failed is there again; nobody, where the run goes on without them for good."""

    def __init__(self, registry: Registry, roster: Roster, events: Events) -> None:
        self._registry = registry
        self._roster = roster
        self._events = events
        self._round = -1

    def late(self, members: Collection[str]) -> list[str]:
        """Those that are there now, and are none of the run's `members` yet."""
        return [vehicle for vehicle in self._waiting() if vehicle not in members]

    def begin(self, stage: Stage, members: Collection[str]) -> None:
        """A stage begins; if a round does with it, those of the `members` that are back take part again.

        Raises:
            OSError: it can't be written down.
        """
        is_new, self._round = stage.round != self._round, stage.round
        for vehicle in self._waiting() if is_new else ():
            if vehicle not in members:
                continue
            reason = self._registry.vehicles[vehicle].failed
            self._registry.vehicles[vehicle].failed = ""
            self._roster.take_back(vehicle)
            log.warning("vehicle %s takes part again from round %d on: %s", vehicle, stage.round, reason)
            self._events.event("readmitted", vehicle=vehicle, round=stage.round, reason=reason)

    def _waiting(self) -> list[str]:
        if not self._registry.readmits:
            return []
        return [
            vehicle
            for vehicle, record in self._registry.vehicles.items()
            if record.failed and record.online and record.hello is not None
        ]
