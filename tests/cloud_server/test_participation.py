"""Who takes part in a round and in an evaluation, and how it is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_server.algorithms.participation import drawn_vehicles, taking_part, turns_of_learning
from cloud_server.config import CloudConfig
from cloud_server.run.combinations import check_combination
from cloud_server.schedule import Kind, all_together, apart, round_robin
from protocol.errors import SettingError
from protocol.plans.federated import FederatedPlan
from protocol.plans.late import Late
from protocol.plans.participation import Participation, drawn_of
from protocol.plans.sharing import Sharing

CARS = tuple(f"car-{number:02d}" for number in range(20))


def _config(participation: Participation, **changes: object) -> CloudConfig:
    return CloudConfig(
        fleet="many",
        vehicles=CARS,
        rounds=5,
        participation=participation,
        **changes,  # type: ignore[arg-type]
    )


@given(count=st.integers(1, 20), seed=st.integers(0, 2**40))
def test_so_many_are_drawn_for_each_round_and_do_all_that_a_round_asks_for(count: int, seed: int) -> None:
    config = _config(count, seed=seed, evaluated=CARS[::7])
    for schedule in (round_robin(CARS, 5), all_together(CARS, 5), apart(CARS, 5, None)):
        stages = taking_part(schedule, config)
        assert [stage.number for stage in stages] == list(range(len(stages)))
        assert stages[0].vehicles == stages[-1].vehicles == CARS[::7]
        for number in range(1, 6):
            for kind in (Kind.LEARN, Kind.TRAIN):
                members = [car for s in stages if (s.round, s.kind) == (number, kind) for car in s.vehicles]
                if members:
                    assert tuple(members) == drawn_vehicles(config, number)
                    assert len(set(members)) == count
    assert sum(turns_of_learning(config).values()) == 5 * count


def test_rounds_draw_anew_and_a_longer_run_begins_alike() -> None:
    rounds = [drawn_vehicles(_config(5), number) for number in range(1, 6)]
    assert len(set(rounds)) > 1
    assert rounds == [drawn_vehicles(_config(5, seed=0), number) for number in range(1, 6)]


def test_all_is_the_schedule_as_it_was() -> None:
    for schedule in (round_robin(CARS, 5), all_together(CARS, 5)):
        assert taking_part(schedule, _config("all")) == schedule


@pytest.mark.parametrize(
    ("said", "count"),
    [
        ("first:0.5/8", 8),
        ("first:3", 20),
        ("async:4", 20),
        ("all", 20),
        (7, 7),
        ("7", 7),
        ("0.2", 4),
        (0.2, 4),
        (0.001, 1),
        (1, 1),
    ],
)
def test_participation_may_be_said_in_words_or_numbers(said: Participation, count: int) -> None:
    assert drawn_of(said, 20) == count


@pytest.mark.parametrize(
    "said", ["some", "", 0, -3, "-1", 1.5, 1.0, 0.0, "nan", "0x3", "first:", "first:3/", "async", "async:0"]
)
def test_anything_else_is_refused_in_one_line(said: Participation) -> None:
    with pytest.raises(SettingError, match=r"participation must be all, a number of vehicles from 1 such as"):
        _config(said)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"participation": 21}, "participation 21 is more than the 20 vehicles of the fleet"),
        (
            {"participation": 5, "algorithm": "centralized"},
            "has all frames in one place: participation must be all",
        ),
        (
            {"participation": 5, "algorithm": "fedavg", "federated": FederatedPlan(client_fraction=0.5)},
            "both draw a round's vehicles; give one of them",
        ),
        ({"participation": "first:8/6"}, "first:8/6 waits for 8 of 6 vehicles"),
        ({"participation": "async:21"}, "one contribution of a vehicle at most, and the fleet has 20"),
        (
            {"participation": "async:2", "late": Late(deadline_s=5.0)},
            "late.deadline_s must not be given, got 5",
        ),
        (
            {"participation": "async:2", "algorithm": "split"},
            "^participation async:2 .* split has not; .*: blackfleet, blackfleet-no-fe.*, fedavg, fedprox$",
        ),
        (
            {"participation": "first:2", "algorithm": "blackfed-v1"},
            "blackfed-v1 has not; algorithms that have: blackfleet, .*, cse-fsl, fsl-sage, fedavg, fedprox$",
        ),
        (
            {"late": Late(deadline_s=5.0, work="keep"), "algorithm": "cse-fsl"},
            "late.work keep takes .* cse-fsl",
        ),
        ({"participation": "async:2", "sharing": Sharing(encoder="weights")}, "sharing.encoder must be none"),
    ],
)
def test_what_means_nothing_is_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(SettingError, match=reason):
        check_combination(CloudConfig(fleet="many", vehicles=CARS, **changes))  # type: ignore[arg-type]
