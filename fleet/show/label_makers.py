"""Whose labels a run has used, a sentence each, where they are not simply files.

A score is only as true as the labels that it is against.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets.label_files import FILES, NONE, PSEUDO

_NAMED = 3
_SCORED = {"val": "validation", "test": "test", "ood": "OOD", "fleet": "the test split"}


def label_makers(result: Mapping[str, Any]) -> list[str]:
    """`result`: content of `result.json`; nothing where all labels are files that name no maker."""
    learnt: dict[str, list[str]] = {}
    scored: dict[str, list[str]] = {}
    for vehicle, entry in (result.get("vehicles") or {}).items():
        labels = entry.get("labels") or {}
        if text := _told(labels.get("train") or {}):
            learnt.setdefault(text, []).append(vehicle)
        kinds: dict[str, list[str]] = {}
        for split, kind in _SCORED.items():
            if text := _told(labels.get(split) or {}):
                kinds.setdefault(text, []).append(kind)
        for text, names in kinds.items():
            scored.setdefault(f"{text} for {', '.join(names)}", []).append(vehicle)
    everybody = len(result.get("vehicles") or {})
    return [
        *(f"labels that {_names(names, everybody)} learnt from: {text}" for text, names in learnt.items()),
        *(f"labels that {_names(names, everybody)} scored against: {text}" for text, names in scored.items()),
    ]


def _told(makers: Mapping[str, int]) -> str:
    """Empty where there is nothing but files, or nothing at all; shares where there are several makers."""
    if set(makers) <= {FILES}:
        return ""
    words = {FILES: "label files", NONE: "none", PSEUDO: "the fleet's own predictions"}
    total = sum(makers.values()) or 1
    return " and ".join(
        words.get(maker, maker) + (f" ({100 * count / total:.0f} %)" if len(makers) > 1 else "")
        for maker, count in makers.items()
    )


def _names(vehicles: list[str], everybody: int) -> str:
    if len(vehicles) == everybody:
        return "all vehicles" if everybody > 1 else vehicles[0]
    more = f" and {len(vehicles) - _NAMED} more" if len(vehicles) > _NAMED else ""
    return ", ".join(vehicles[:_NAMED]) + more
