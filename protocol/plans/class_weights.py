"""How much a pixel counts in a loss, by the class of its label: a setting that cloud and vehicles share."""

from __future__ import annotations

import math
from typing import Annotated

from msgspec import Meta

from protocol.errors import SettingError

ClassWeights = Annotated[str, Meta(max_length=16)] | dict[Annotated[str, Meta(max_length=128)], float]
"""`none`: all alike; `balanced`: by how rare a class is among the labels that are learnt from; or a table of
weights by class, 1 for those not named."""

NONE, BALANCED = "none", "balanced"


def check_class_weights(weights: ClassWeights) -> None:
    """Refuse what is none of the three.

    Raises:
        SettingError: the message names the value.
    """
    if isinstance(weights, str):
        if weights not in (NONE, BALANCED):
            raise SettingError(
                f"class_weights must be {NONE}, {BALANCED} or a table of weights by class, got {weights!r}"
            )
        return
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise SettingError(f"class_weights.{name} must be finite and at least 0, got {weight:g}")
