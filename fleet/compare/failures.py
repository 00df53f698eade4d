"""Vehicles that their runs went on without, a sentence each: whatever shows a run's means must tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def failures(runs: Iterable[tuple[str, int, Mapping[str, Any]]]) -> list[str]:
    """`runs`: algorithm, seed and the content of `result.json` of each."""
    return [
        f"{algorithm} (seed {seed}) is without {vehicle}, which failed: {reason}"
        for algorithm, seed, result in runs
        for vehicle, reason in result.get("failed", {}).items()
    ]
