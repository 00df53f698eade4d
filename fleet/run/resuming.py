"""What a run may be resumed with: its own settings, another broker or device, more rounds if well defined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from cloud_server.errors import CloudError
from cloud_server.run.more_rounds import check_more_rounds
from fleet.errors import OperatorError
from fleet.run.folder import kept_scenario, with_absolute_paths
from fleet.scenario import Scenario

BROKER_KEYS = frozenset({"broker", "broker_port"})
"""Where the broker is does not belong to what a run computes."""
_DEVICE = "device"
_KEPT_WHERE_NOT_GIVEN = ("fleet", "cores")
"""Settings that a run gets when it begins."""
_ROUNDS = "rounds"


def resumed_scenario(scenario: Scenario, run_folder: Path) -> Scenario:
    """The run's own scenario with broker and device of this one, and its rounds where they are more.

    Raises:
        OperatorError: the folder holds no run, or one of other settings; the message names each of them.
    """
    kept = with_absolute_paths(kept_scenario(run_folder))
    asked = with_absolute_paths(scenario)
    for key in _KEPT_WHERE_NOT_GIVEN:
        if getattr(asked, key) is None:
            asked = msgspec.structs.replace(asked, **{key: getattr(kept, key)})
    changes = differences(kept, asked, free=BROKER_KEYS | {_ROUNDS, _DEVICE})
    if changes:
        raise OperatorError(
            f"{run_folder} goes on with the settings it began with: {'; '.join(changes)}; leave that out, or "
            f"begin a new run in another folder"
        )
    try:
        check_more_rounds(asked.cloud_config(), kept.rounds)
    except CloudError as error:
        raise OperatorError(f"{run_folder} can't go on with that: {error}") from error
    return msgspec.structs.replace(
        kept,
        rounds=asked.rounds,
        device=asked.device,
        broker=scenario.broker,
        broker_port=scenario.broker_port,
    )


def differences(kept: Scenario, given: Scenario, *, free: frozenset[str]) -> list[str]:
    """`rounds was 4, is now 8` for each setting in which two scenarios differ, but for those in `free`."""
    before, now = flat(kept), flat(given)
    return [
        f"{key} was {before.get(key)}, is now {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if key not in free and before.get(key) != now.get(key)
    ]


def flat(scenario: Scenario) -> dict[str, Any]:
    """Every setting by its dotted key."""
    return flatten(msgspec.to_builtins(scenario))


def flatten(table: dict[str, Any]) -> dict[str, Any]:
    """Tables in a table as dotted keys."""
    settings: dict[str, Any] = {}

    def walk(content: dict[str, Any], prefix: str) -> None:
        for key, value in content.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                settings[prefix + key] = value

    walk(table, "")
    return settings
