"""Scenarios to begin with, of pretrained encoders and published experiments: each a file beside this one."""

from __future__ import annotations

from pathlib import Path

from fleet.errors import OperatorError

PRESETS = {
    "pretrained": "an encoder pretrained on ImageNet, whose projection learns before the first upload",
    "strict": "encoders that learn against a decoder, features of few bits, frames without names",
    "feddrive": "Cityscapes, 146 vehicles of 10 to 45 frames of one city each (FedDrive v2)",
    "blackfed": "Cityscapes, 18 cities, a vehicle each (BlackFed)",
}
"""What there is, by name, with what it is in a few words."""


def find_preset(name: str) -> Path:
    """The scenario file of a preset.

    Raises:
        OperatorError: there is none of this name; the message says which there are.
    """
    if name not in PRESETS:
        raise OperatorError(f"unknown preset {name!r}, expected one of: {', '.join(PRESETS)}")
    return Path(__file__).with_name(f"{name}.yaml")
