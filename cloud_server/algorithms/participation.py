"""Who takes part in what: those drawn for a round, and those that stand for the fleet in evaluations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from cloud_server.algorithms.row import AlgorithmRow
from cloud_server.algorithms.traits import wants_present_frames
from cloud_server.config import CloudConfig
from cloud_server.schedule import Kind, Stage
from protocol.errors import SettingError
from protocol.noise import derive_seed, permutation
from protocol.plans.federated import FederatedPlan
from protocol.plans.late import Late
from protocol.plans.participation import ALL, Rounds, drawn_of, rounds_of
from protocol.plans.present import Present
from protocol.plans.sharing import Sharing


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


def check_participation(
    config: CloudConfig, row: AlgorithmRow[Any], known: Iterable[AlgorithmRow[Any]]
) -> None:
    """Refuse to draw vehicles, or not to wait for them, where that means nothing, or is said twice.

    Raises:
        SettingError: the message names the setting, and which of the `known` algorithms can do it.
    """
    late = config.way(Late)
    if config.participation == ALL and late == Late():
        return
    said, vehicles = config.participation, len(config.vehicles)
    if row.build is None:
        what = f"participation {said}" if said != ALL else f"late.deadline_s {late.deadline_s:g}"
        raise SettingError(
            f"{what} is about a round's vehicles, and {config.algorithm} has all frames in one place: "
            f"participation must be {ALL}, and late.deadline_s left out"
        )
    rounds = rounds_of(said, vehicles)
    fraction = config.way(FederatedPlan).client_fraction
    if said != ALL and fraction < 1:
        raise SettingError(
            f"participation {said} and federated.client_fraction {fraction:g} both draw a round's vehicles; "
            f"give one of them"
        )
    if rounds.drawn > vehicles:
        raise SettingError(
            f"participation {said} is more than the {vehicles} vehicles of the fleet; give so many or fewer, "
            f"a share such as 0.2, or {ALL}"
        )
    if rounds.enough is not None and rounds.enough > rounds.drawn:
        raise SettingError(
            f"participation {said} waits for {rounds.enough} of {rounds.drawn} vehicles; give no more than "
            f"are drawn"
        )
    if rounds.buffer is not None and rounds.buffer > vehicles:
        raise SettingError(
            f"participation {said}: a round takes one contribution of a vehicle at most, and the fleet has "
            f"{vehicles}; give so many or fewer"
        )
    if rounds.buffer is not None and late.deadline_s is not None:
        raise SettingError(
            f"participation {said} has rounds that wait for nobody: late.deadline_s must not be given, got "
            f"{late.deadline_s:g}"
        )
    _check_able(config, row, known, rounds)


def _check_able(
    config: CloudConfig, row: AlgorithmRow[Any], known: Iterable[AlgorithmRow[Any]], rounds: Rounds
) -> None:
    """Whether the algorithm's rounds may end without some of their vehicles, or overlap."""
    late = config.way(Late)
    if rounds.buffer is not None or late.work == "keep":
        what = f"participation {config.participation}" if rounds.buffer is not None else "late.work keep"
        able, why = row.rounds_overlap, "turns that count in a later round than they began in"
        others = [other.name for other in known if other.rounds_overlap]
    elif rounds.enough is not None or late.deadline_s is not None:
        what = (
            f"participation {config.participation}"
            if rounds.enough is not None
            else f"late.deadline_s {late.deadline_s:g}"
        )
        able, why = row.side_by_side, "vehicles that learn side by side and rounds that end without some"
        others = [other.name for other in known if other.side_by_side]
    else:
        return
    if not able:
        raise SettingError(
            f"{what} takes {why}, which {row.name} has not; algorithms that have: {', '.join(others)}"
        )
    if rounds.buffer is not None or late.work == "keep":
        encoder = config.way(Sharing).encoder
        if encoder != "none":
            raise SettingError(
                f"{what} needs encoders of each vehicle's own, or a network of the fleet's (fedavg): "
                f"sharing.encoder must be none, got {encoder}"
            )
