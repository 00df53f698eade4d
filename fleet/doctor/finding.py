"""What a check has found, and how it is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "wrong"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line."""

    about: str
    state: State
    """`note`: worth knowing, nothing stops; `wrong`: what is asked for can't be done here."""
    found: str
    advice: str = ""
    """What to do; empty where nothing is to be done."""


def as_text(findings: Sequence[Finding]) -> str:
    """A line for each, and what to do below it."""
    width = max((len(finding.about) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<5}  {finding.about:<{width}}  {finding.found}")
        if finding.advice:
            lines.append(f"{'':<5}  {'':<{width}}  → {finding.advice}")
    return "\n".join(lines)
