"""FedProx by its own name: the same rounds as fedavg, with vehicles held near the round's weights.

What the term does on a vehicle is tested with its network, `tests/fleet/test_local_model.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from federated_fixtures import FederatedFleet
from fleet_fixtures import CARS, World

from cloud_server.algorithms.base import Context
from cloud_server.algorithms.table import algorithm_row, build_algorithm
from cloud_server.events import Events
from cloud_server.run.combinations import check_combination
from cloud_server.schedule import Kind
from datasets.labels import CAMVID
from protocol.errors import SettingError
from protocol.plans.federated import FederatedPlan


def test_turns_of_fedprox_alone_carry_the_proximal_term(tiny_world: World, tmp_path: Path) -> None:
    fleet = FederatedFleet(tiny_world, tmp_path, federated=FederatedPlan(proximal=0.5))
    nothing = cast(Any, None)
    context = Context(
        config=fleet.config,
        label_space=CAMVID,
        trainer=nothing,
        labels=nothing,
        events=Events(),
        run_folder=fleet.run_folder,
        check_stop=lambda: None,
        train_frames=dict.fromkeys(CARS, 6),
        ledger=nothing,
        source_frames=dict.fromkeys(CARS, 0),
    )
    carried = {}
    for name in ("fedavg", "fedprox"):
        algorithm = build_algorithm(name, context)
        [stage] = [stage for stage in algorithm.stages if stage.kind is Kind.TRAIN and stage.round == 1]
        plan = algorithm.plan(stage, CARS[0]).learner
        assert isinstance(plan, FederatedPlan)
        carried[name] = plan.proximal
    assert carried == {"fedavg": 0.0, "fedprox": 0.5}


@pytest.mark.parametrize(
    ("algorithm", "proximal", "says"),
    [("fedavg", 0.5, True), ("fedavg", 0.0, False), ("fedavg", None, False), ("fedprox", 0.5, False)],
)
def test_fedavg_says_that_it_has_no_such_term(
    algorithm: str, proximal: float | None, says: bool, tiny_world: World, tmp_path: Path
) -> None:
    plan = FederatedPlan() if proximal is None else FederatedPlan(proximal=proximal)
    fleet = FederatedFleet(tiny_world, tmp_path, algorithm=algorithm, federated=plan)
    remark = algorithm_row(algorithm).remark(fleet.config)
    assert remark == ("federated.proximal 0.5 is of fedprox alone: fedavg has no such term" if says else None)


def test_fedprox_without_its_term_is_refused(tiny_world: World, tmp_path: Path) -> None:
    fleet = FederatedFleet(tiny_world, tmp_path, algorithm="fedprox", federated=FederatedPlan(proximal=0.0))
    with pytest.raises(SettingError, match=r"fedprox with federated\.proximal 0 is fedavg: give a μ above 0"):
        check_combination(fleet.config)
