"""A run that goes on with more rounds than it began with: when that is well defined, and where it goes on."""

from __future__ import annotations

from collections.abc import Sequence

from cloud_server.algorithms.closing import overlaps
from cloud_server.algorithms.table import algorithm_row
from cloud_server.config import CloudConfig
from cloud_server.errors import CloudError
from cloud_server.schedule import Stage
from protocol.plans.local_loss import LocalLossPlan

_CONSTANT = "constant"


def check_more_rounds(config: CloudConfig, began_with: int) -> None:
    """Refuse another number of rounds where the rounds done would have been others with it.

    Raises:
        CloudError: there are fewer rounds than `began_with`, or a setting spans all of them.
    """
    if config.rounds == began_with:
        return
    change = f"rounds was {began_with}, is now {config.rounds}"
    if config.rounds < began_with:
        raise CloudError(f"{change}: a run can be made longer, not shorter; begin a new one")
    spanning = _what_spans_all_rounds(config)
    if spanning is not None:
        raise CloudError(
            f"{change}: {spanning}, so that the rounds done would have been others; begin a new run"
        )


def first_stage(next_stage: int, began_with: int, config: CloudConfig, stages: Sequence[Stage]) -> int:
    """The stage to go on with, of `stages`, when `next_stage` was the next one of `began_with` rounds.

    With more rounds it is at the latest the first of the new ones: the evaluation at the end of the shorter
    run has changed nothing that is learnt.

    Raises:
        CloudError: see `check_more_rounds`.
    """
    check_more_rounds(config, began_with)
    if config.rounds == began_with:
        return next_stage
    return min(next_stage, sum(stage.round <= began_with for stage in stages))


def _what_spans_all_rounds(config: CloudConfig) -> str | None:
    row = algorithm_row(config.algorithm)
    if not row.may_go_on:
        return f"{row.name} does not promise that a longer run begins like a shorter one"
    if overlaps(config):
        return "turns that span rounds (participation async, late.work keep) ended with the last one"
    schedules = {"first_order.schedule": config.first_order.schedule}
    if row.needs.local_head:
        schedules["local_loss.schedule"] = config.way(LocalLossPlan).schedule
    if row.follows_estimator:
        schedules["zeroth_order.schedule"] = config.zeroth_order.schedule
    for key, schedule in schedules.items():
        if schedule != _CONSTANT:
            return f"{key} {schedule} lets the rates fall over all rounds"
    if row.weights_losses and config.way(LocalLossPlan).weight_power:
        return "loss maps (local_loss.weight_power) are not made in the last round"
    return None
