"""Who takes part in what: those drawn for a round, and those that stand for the fleet in evaluations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from cloud_server.algorithms.traits import wants_present_frames
from cloud_server.config import CloudConfig
from cloud_server.schedule import Kind, Stage
from protocol.errors import SettingError
from protocol.noise import derive_seed, permutation
from protocol.plans.federated import FederatedPlan
from protocol.plans.participation import ALL, drawn_of
from protocol.plans.present import Present


def drawn_vehicles(config: CloudConfig, round_number: int) -> tuple[str, ...]:
    """The vehicles of a round, drawn from the seed without replacement, in the fleet's order."""
    count = min(drawn_of(config.participation, len(config.vehicles)), len(config.vehicles))
    if count == len(config.vehicles):
        return config.vehicles
    order = permutation(derive_seed(config.seed, "participation", round_number), len(config.vehicles))
    return tuple(config.vehicles[position] for position in sorted(order[:count].tolist()))


def turns_of_learning(config: CloudConfig) -> Counter[str]:
    """By vehicle: the rounds of the run that it is drawn for."""
    rounds = range(1, config.rounds + 1)
    return Counter(vehicle for number in rounds for vehicle in drawn_vehicles(config, number))


def taking_part(stages: Sequence[Stage], config: CloudConfig) -> tuple[Stage, ...]:
    """The stages with those alone who take part in them, numbered anew: rounds with the vehicles that are
    drawn, evaluations with `config.evaluated`; a stage with nobody in it is left out."""
    evaluated = config.vehicles if config.evaluated is None else config.evaluated
    needs_all_at_start = wants_present_frames(config.way(Present), config.adaptation.objective)
    drawn: dict[int, frozenset[str]] = {}
    thinned: list[Stage] = []
    for stage in stages:
        if stage.kind in (Kind.LEARN, Kind.TRAIN):
            if stage.round not in drawn:
                drawn[stage.round] = frozenset(drawn_vehicles(config, stage.round))
            members = drawn[stage.round]
        elif stage.kind is Kind.INITIAL and needs_all_at_start:
            members = frozenset(config.vehicles)
        else:
            members = frozenset(evaluated)
        vehicles = tuple(vehicle for vehicle in stage.vehicles if vehicle in members)
        if vehicles:
            thinned.append(replace(stage, vehicles=vehicles, number=len(thinned)))
    return tuple(thinned)


def check_participation(config: CloudConfig, *, in_one_place: bool) -> None:
    """Refuse to draw vehicles where that means nothing, or is said twice.

    Raises:
        SettingError: the algorithm has all frames in one place; or more vehicles are to be drawn than there
            are.
    """
    if config.participation == ALL:
        return
    if in_one_place:
        raise SettingError(
            f"participation {config.participation} draws vehicles for each round, and {config.algorithm} "
            f"has all frames in one place: it must be {ALL}"
        )
    fraction = config.way(FederatedPlan).client_fraction
    if fraction < 1:
        raise SettingError(
            f"participation {config.participation} and federated.client_fraction {fraction:g} both draw a "
            f"round's vehicles; give one of them"
        )
    count = drawn_of(config.participation, len(config.vehicles))
    if count > len(config.vehicles):
        raise SettingError(
            f"participation {count} is more than the {len(config.vehicles)} vehicles of the fleet; give so "
            f"many or fewer, a share such as 0.2, or {ALL}"
        )
