"""What a runner gets to do: one run whose scenario, frames and folder are settled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from datasets.class_file import is_class_file
from datasets.frame import FrameSource
from fleet.errors import OperatorError
from fleet.frames.allocation import Share
from fleet.run.controls import Controls
from fleet.run.places import Machines
from fleet.scenario import Scenario
from fleet.start import Start


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
    controls: Controls = field(default_factory=Controls)
    """By which an operator asks for something while it runs."""
    machines: Machines | None = None
    """For its vehicles' processes; None: this one."""

    @property
    def classes_name(self) -> str:
        """By which `datasets.catalog.label_space` finds the classes in this process."""
        name = self.scenario.dataset.classes_name
        return str(self.run_folder / name) if is_class_file(name) else name

    @property
    def has_begun(self) -> bool:
        """Whether something may be committed already, so that the run is resumed."""
        return (self.run_folder / "cloud" / "checkpoints").is_dir()


def read_object(path: Path) -> dict[str, Any]:
    """A file of a run folder that holds a JSON object.

    Raises:
        OperatorError: it can't be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OperatorError(f"can't read {path}: {error.strerror}") from error
    except ValueError as error:
        raise OperatorError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise OperatorError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content
