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
    unknown, place = match.group(1), match.group(2) or ""
    part: Any = settings
    for name in filter(None, place.split(".")):
        part = next(field.type for field in msgspec.structs.fields(part) if field.name == name)
    known = [field.name for field in msgspec.structs.fields(part)]
    near = difflib.get_close_matches(unknown, known, n=1)
    key = f"{place}.{unknown}" if place else unknown
    if key in MOVED:
        hint = f"; it is now {MOVED[key]}"
    elif near:
        hint = f"; did you mean {near[0]!r}?"
    else:
        hint = f"; known keys: {', '.join(known)}"
    return f"unknown key {key}{hint}"
