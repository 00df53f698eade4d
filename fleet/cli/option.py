"""What an option of the command line is that overrides a scenario, and a group of them in the help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ScenarioOption:
    """One option and the scenario key that it overrides."""

    name: str
    """As a parameter; the option is `--` and this with hyphens."""
    key: str
    """Dotted, as in a scenario file."""
    type: Any
    help: str
    by_vehicle: bool = True
    """Of an option that is repeated: whether it takes VEHICLE=VALUE, rather than one value each."""
    choices: tuple[str, ...] = ()
    """What a shell completes its value to; other values may be taken, too."""

    @property
    def flag(self) -> str:
        """As it is written."""
        return f"--{self.name.replace('_', '-')}"


@dataclass(frozen=True)
class OptionGroup:
    """Options that the help shows together."""

    title: str
    """Empty: they stand first, with the command's own."""
    options: tuple[ScenarioOption, ...]
