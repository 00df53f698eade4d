"""What to say about a key that nobody knows: the nearest known one, or where it has moved to."""

from __future__ import annotations

import difflib
import re
from typing import Any

import msgspec

MOVED = {
    "bits": "coding.bits",
    "frame_bytes": "coding.frame_bytes",
    "subspace": "adaptation.subspace",
    "objective": "adaptation.objective",
    "anchor": "adaptation.anchor",
    "zeroth_order.perturbation": "spsa.perturbation",
    "zeroth_order.queries": "spsa.queries",
    "zeroth_order.rate": "spsa.rate",
    "zeroth_order.momentum": "spsa.momentum",
    "zeroth_order.activation": "activation",
}
"""Where settings are now that files of earlier versions have elsewhere."""


def explain(message: str, settings: type[msgspec.Struct]) -> str:
    """msgspec's message about settings; where it is of an unknown key, with what may have been meant."""
    match = re.search(r"unknown field `([^`]*)`(?: - at `\$\.?([^`]*)`)?", message)
    if not match:
        return message
    return unknown_key(match.group(1), match.group(2) or "", settings)


def unknown_key(unknown: str, place: str, settings: type[msgspec.Struct]) -> str:
    """That a section, by its dotted place, has no such key, and what may have been meant."""
    part: Any = settings
    for name in filter(None, place.split(".")):
        part = next(field.type for field in msgspec.structs.fields(part) if field.name == name)
    known = [field.name for field in msgspec.structs.fields(part)]
    near = difflib.get_close_matches(unknown, known, n=1)
    elsewhere = _in_sections(unknown, settings)
    key = f"{place}.{unknown}" if place else unknown
    if key in MOVED:
        hint = f"; it is now {MOVED[key]}"
    elif elsewhere and not place:
        hint = f"; did you mean {' or '.join(elsewhere)}?"
    elif near:
        hint = f"; did you mean {near[0]!r}?"
    else:
        hint = f"; known keys: {', '.join(known)}"
    return f"unknown key {key}{hint}"


def _in_sections(name: str, settings: type[msgspec.Struct]) -> list[str]:
    """The dotted keys of the sections that have a key of this name."""
    return [
        f"{section.name}.{name}"
        for section in msgspec.structs.fields(settings)
        if isinstance(section.type, type) and issubclass(section.type, msgspec.Struct)
        if name in section.type.__struct_fields__
    ]
