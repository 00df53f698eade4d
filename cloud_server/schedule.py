"""What happens in which order: the stages of a run.

A stage is what is committed at once: one or more vehicles' turns, then whatever the cloud makes of them.
Its number is the turn id of its turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum


class Kind(str, Enum):
    """What a stage is for."""

    INITIAL = "initial"
    """Evaluation of the untrained start on each vehicle's own test frames."""
    LEARN = "learn"
    """Vehicles learn by themselves, and what they make of the encoder is brought together: a stage of `TRAIN`
    follows."""
    TRAIN = "train"
    FINAL = "final"
    """Evaluation of the result on each vehicle's own test frames and on the others'."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Turns that are committed together."""

    number: int
    round: int
    """1 for the first; 0 before and rounds + 1 after training."""
    kind: Kind
    vehicles: tuple[str, ...]
    deadline_s: float | None = None
    """Longest that a turn may take, restarts included, before the stage goes on without its vehicle; None =
    the stage waits for everyone."""


def round_robin(vehicles: Sequence[str], rounds: int) -> tuple[Stage, ...]:
    """BlackFed's order: in each round one vehicle after the other has a turn of its own."""
    return _stages(vehicles, rounds, [(Kind.TRAIN, (vehicle,)) for vehicle in vehicles])


def all_together(vehicles: Sequence[str], rounds: int) -> tuple[Stage, ...]:
    """One stage a round with everyone's turn, for vehicles whose turns have nothing to do with each other."""
    return _stages(vehicles, rounds, [(Kind.TRAIN, tuple(vehicles))])


def apart(vehicles: Sequence[str], rounds: int, deadline_s: float | None) -> tuple[Stage, ...]:
    """Two stages a round with everyone's turn: in the first vehicles learn, in the second the cloud does."""
    kinds = [(kind, tuple(vehicles)) for kind in (Kind.LEARN, Kind.TRAIN)]
    stages = _stages(vehicles, rounds, kinds)
    return tuple(
        replace(stage, deadline_s=deadline_s) if stage.kind in (Kind.LEARN, Kind.TRAIN) else stage
        for stage in stages
    )


def in_drawn_order(
    vehicles: Sequence[str], rounds: int, order: Callable[[int], Sequence[str]]
) -> tuple[Stage, ...]:
    """In each round vehicles learn one after the other, in the order of its number, each in a stage of its
    own; a stage with everyone's turn follows."""
    plan: list[tuple[int, Kind, tuple[str, ...]]] = []
    for number in range(1, rounds + 1):
        plan += [(number, Kind.LEARN, (vehicle,)) for vehicle in order(number)]
        plan.append((number, Kind.TRAIN, tuple(vehicles)))
    return _numbered(vehicles, rounds, plan)


def _stages(
    vehicles: Sequence[str], rounds: int, stages_of_round: Sequence[tuple[Kind, tuple[str, ...]]]
) -> tuple[Stage, ...]:
    learning = [(number, *stage) for number in range(1, rounds + 1) for stage in stages_of_round]
    return _numbered(vehicles, rounds, learning)


def _numbered(
    vehicles: Sequence[str], rounds: int, learning: Sequence[tuple[int, Kind, tuple[str, ...]]]
) -> tuple[Stage, ...]:
    """Stages of learning, (round, kind, vehicles) each, between the two evaluations."""
    everyone = tuple(vehicles)
    plan = [(0, Kind.INITIAL, everyone), *learning, (rounds + 1, Kind.FINAL, everyone)]
    return tuple(
        Stage(number=number, round=round_number, kind=kind, vehicles=members)
        for number, (round_number, kind, members) in enumerate(plan)
    )
