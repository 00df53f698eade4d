"""What a runner gets to do: one run whose scenario, frames and folder are settled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from datasets.frame import FrameSource
from fleet.run.allocation import Share
from fleet.run.start import Start
from fleet.scenario import Scenario


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run, new or to go on with; a runner ends by having written `result.json` into the folder."""

    scenario: Scenario
    run_folder: Path
    source: FrameSource
    shares: Mapping[str, Share]
    """By vehicle."""
    console: Console
    start: Start | None = None
    """What vehicles and cloud start from, in the run folder; None = from the seed."""

    @property
    def has_begun(self) -> bool:
        """Whether something may be committed already, so that the run is resumed."""
        return (self.run_folder / "cloud" / "checkpoints").is_dir()
