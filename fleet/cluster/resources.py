"""What a process reserves on a node, in Ray's words: `CPU=2,GPU=0.5,orin=1`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protocol.errors import SettingError

CPU, GPU, MEMORY = "CPU", "GPU", "memory"
_OWN_OPTIONS = {CPU: "num_cpus", GPU: "num_gpus", MEMORY: "memory"}
"""Those that Ray has an option of its own for; memory in bytes."""


def parse_resources(text: str, option: str) -> dict[str, float]:
    """Amounts by name.

    Raises:
        SettingError: it is something else; names the option.
    """
    amounts: dict[str, float] = {}
    for part in text.split(","):
        name, equals, amount = part.strip().partition("=")
        try:
            value = float(amount)
        except ValueError:
            value = -1.0
        if not (name and equals) or not 0 <= value < float("inf") or name in amounts:
            raise SettingError(
                f"{option} must be NAME=AMOUNT with commas between, each name once, such as CPU=2,GPU=0.5, "
                f"got {text!r}"
            )
        amounts[name] = value
    return amounts


def actor_options(amounts: Mapping[str, float]) -> dict[str, Any]:
    """The same as Ray's actors take them; CPUs that are not named are 0."""
    options: dict[str, Any] = {"num_cpus": 0}
    own: dict[str, float] = {}
    for name, amount in amounts.items():
        if name in _OWN_OPTIONS:
            options[_OWN_OPTIONS[name]] = int(amount) if name == MEMORY else amount
        else:
            own[name] = amount
    return {**options, "resources": own} if own else options


def room(amounts: Mapping[str, float], totals: Mapping[str, float]) -> int:
    """How many processes that reserve `amounts` fit on a node that has `totals`."""
    return int(
        min((totals.get(name, 0.0) // amount for name, amount in amounts.items() if amount), default=1)
    )


def told(amounts: Mapping[str, float]) -> str:
    """As the option has it."""
    return ",".join(f"{name}={amount:g}" for name, amount in amounts.items())
