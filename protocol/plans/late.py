"""Rounds that do not wait for everyone: what becomes of those that are late."""

from __future__ import annotations

from protocol.errors import SettingError
from protocol.plans.checks import Way


class Late(Way, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What becomes of vehicles that a round does not wait for."""

    section = "late"

    deadline_s: float | None = None
    """Longest that a round waits for its vehicles, from its first grant on; None = as long as it takes. An
    algorithm that learns and uploads in separate parts of a round has so long for each."""
    work: str = "drop"
    """What becomes of the work of those that are late: `drop` it, or `keep` it for the round in which it is
    done."""

    def __post_init__(self) -> None:
        self._above(0, "deadline_s")
        self._one_of(("drop", "keep"), "work")
        if self.work == "keep" and self.deadline_s is None:
            raise SettingError(
                f"{self.key('work')} keep is for rounds with a deadline: give {self.key('deadline_s')} "
                f"(--deadline), or leave it out"
            )
