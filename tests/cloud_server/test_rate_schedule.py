"""The estimator's rate over the rounds: each turn carries its round's share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from fleet_fixtures import CARS, TinyFleet, World, tag
from supervision import Supervisor

from cloud_server.config import ZerothOrderConfig
from cloud_server.run.combinations import check_combination
from protocol.errors import SettingError
from protocol.messages import Turn
from protocol.plans.checks import EstimatorPlan
from protocol.plans.first_order import FirstOrder
from protocol.plans.sharing import Sharing
from protocol.plans.spsa import SpsaPlan
from protocol.session.memory import MemoryBus

RATE, ROUNDS = 1e-2, 3


def fleet_of(world: World, folder: Path, **changes: Any) -> TinyFleet:
    settings = {
        "algorithm": "blackfed-v1",
        "rounds": ROUNDS,
        "spsa": SpsaPlan(queries=1, rate=RATE),
        "zeroth_order": ZerothOrderConfig(batches=1, batch_size=3, schedule="cosine"),
        "first_order": FirstOrder(epochs=1, batch_size=4),
    }
    return TinyFleet(world, folder, **{**settings, **changes})


def rates_of(fleet: TinyFleet, car: str) -> list[float]:
    """Those that a run's turns of learning carry, in their order."""
    rates, bus = [], MemoryBus()

    def note(topic: str, payload: bytes, qos: int) -> None:
        if tag(payload) == "turn":
            turn = msgspec.msgpack.decode(payload[1:], type=Turn)
            if turn.vehicle == car and isinstance(turn.learner, EstimatorPlan):
                rates.append(getattr(turn.learner, "rate"))  # noqa: B009

    bus.record(note)
    Supervisor(fleet, bus).run()
    return rates


def test_rate_falls_along_half_a_cosine(tiny_world: World, tmp_path: Path) -> None:
    rates = rates_of(fleet_of(tiny_world, tmp_path), CARS[0])
    assert rates == pytest.approx([RATE * share for share in (0.9330127, 0.5, 0.0669873)])


def test_rate_stays_without_a_schedule(tiny_world: World, tmp_path: Path) -> None:
    plain = ZerothOrderConfig(batches=1, batch_size=3)
    assert rates_of(fleet_of(tiny_world, tmp_path, zeroth_order=plain), CARS[0]) == [RATE] * ROUNDS


def test_rates_that_follow_no_schedule_are_refused(tiny_world: World, tmp_path: Path) -> None:
    config = fleet_of(tiny_world, tmp_path).config
    by_seeds = msgspec.structs.replace(config, sharing=Sharing(encoder="seeds"))
    with pytest.raises(SettingError, match=r"must be constant with sharing.encoder seeds.*got cosine"):
        check_combination(by_seeds)
    own = ZerothOrderConfig(estimator="my_cars.estimators:mine", schedule="one-cycle")
    with pytest.raises(SettingError, match=r"must be constant with my_cars.estimators:mine.*got one-cycle"):
        check_combination(msgspec.structs.replace(config, zeroth_order=own))
    with pytest.raises(SettingError, match=r"zeroth_order.schedule must be one of .*'linear'"):
        ZerothOrderConfig(schedule="linear")
