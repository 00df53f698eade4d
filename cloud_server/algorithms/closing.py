"""When the turns of a stage come to an end, and what becomes of those that have not by then."""

from __future__ import annotations

from dataclasses import dataclass

from cloud_server.config import CloudConfig, RunSettings
from cloud_server.schedule import Kind, Stage
from protocol.plans.late import Late
from protocol.plans.participation import rounds_of


@dataclass(frozen=True, kw_only=True)
class Closing:
    """Of one stage. By default it ends when everyone has finished."""

    enough: int | None = None
    """It ends when so many have finished."""
    deadline_s: float | None = None
    """It ends so long after it began; where late work is kept, with one that has finished at least."""
    keeps_late: bool = False
    """Turns that are under way at its end go on, and count in the stage in which they are done."""

    def is_over(self, finished: int, passed_s: float) -> bool:
        """Whether it ends before everyone has finished."""
        if self.enough is not None and finished >= self.enough:
            return True
        if self.deadline_s is None or passed_s < self.deadline_s:
            return False
        return finished > 0 or not self.keeps_late


def closing_of(config: CloudConfig, stage: Stage) -> Closing:
    """As participation and `late` say; evaluations wait for everyone."""
    if stage.kind not in (Kind.LEARN, Kind.TRAIN):
        return Closing()
    rounds, late = rounds_of(config.participation, len(config.vehicles)), config.way(Late)
    return Closing(
        enough=rounds.buffer or rounds.enough,
        deadline_s=late.deadline_s,
        keeps_late=overlaps(config),
    )


def overlaps(settings: RunSettings) -> bool:
    """Whether a turn may begin in one round and count in another."""
    return rounds_of(settings.participation, 1).buffer is not None or settings.way(Late).work == "keep"


def depends_on_pace(settings: RunSettings) -> bool:
    """Whether who is faster decides what is learnt."""
    enough, late = rounds_of(settings.participation, 1).enough, settings.way(Late)
    return overlaps(settings) or enough is not None or late.deadline_s is not None
