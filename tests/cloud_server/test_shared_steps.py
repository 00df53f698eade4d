"""Fleets whose vehicles share one encoder by its steps: seeds and losses cross, no weight does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fleet_fixtures import CARS, TinyFleet, World, tag
from supervision import Supervisor
from test_shared_encoder import context_of, turn_of

from cloud_server.algorithms.shared_steps import SharedSteps
from cloud_server.config import ZerothOrderConfig
from cloud_server.errors import RequestError
from cloud_server.run.combinations import check_combination
from cloud_server.run.ended import EndedRun
from cloud_server.schedule import Kind, Stage
from edge_client.encoder.bundle import EncoderBundle
from edge_client.learners.shared_steps import theta_after
from protocol.codec.weights import pack
from protocol.errors import SettingError
from protocol.messages import Shared, Steps
from protocol.plans.adaptation import Adaptation
from protocol.plans.first_order import FirstOrder
from protocol.plans.sharing import PHI, Sharing
from protocol.plans.spsa import SpsaPlan
from protocol.session.memory import MemoryBus

_BATCHES, _EPOCHS = 2, 2
_STEPS_OF_TURN = _BATCHES * _EPOCHS


def fleet_of(world: World, folder: Path, **changes: Any) -> TinyFleet:
    """Two rounds, momentum, an anchor: all that a step depends on."""
    settings = {
        "algorithm": "blackfed-v1",
        "sharing": Sharing(encoder="seeds"),
        "adaptation": Adaptation(subspace="film", anchor=0.1),
        "spsa": SpsaPlan(queries=2, rate=1e-2),
        "zeroth_order": ZerothOrderConfig(epochs=_EPOCHS, batches=_BATCHES, batch_size=3),
        "first_order": FirstOrder(epochs=1, batch_size=4),
    }
    return TinyFleet(world, folder, **{**settings, **changes})


class Watched:
    """A run, and the steps that its vehicles were told."""

    def __init__(self, fleet: TinyFleet) -> None:
        self.fleet = fleet
        self.told: dict[tuple[int, str], Steps] = {}
        """By turn and vehicle."""
        self.tags: set[str] = set()
        bus = MemoryBus()
        bus.record(self._note)
        Supervisor(fleet, bus).run()

    def _note(self, topic: str, payload: bytes, qos: int) -> None:
        self.tags.add(tag(payload))
        if tag(payload) == "steps":
            answer = msgspec.msgpack.decode(payload[1:], type=Steps)
            self.told[answer.turn_id, answer.vehicle] = answer


@pytest.fixture(scope="module")
def calm(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """A run without any disturbance."""
    return Watched(fleet_of(tiny_world, tmp_path_factory.mktemp("steps")))


def test_every_vehicle_takes_every_vehicle_s_steps(calm: Watched) -> None:
    """Turns: 1 and 3 of the first car, 2 and 4 of the second, 5 of both."""
    counts = {key: (len(steps.seeds) // 8, steps.total) for key, steps in calm.told.items()}
    one, total = _STEPS_OF_TURN, 4 * _STEPS_OF_TURN
    assert counts == {
        (1, CARS[0]): (0, 0),
        (2, CARS[1]): (one, one),
        (3, CARS[0]): (one, 2 * one),
        (4, CARS[1]): (one, 3 * one),
        (5, CARS[0]): (one, total),
        (5, CARS[1]): (0, total),
    }
    assert not calm.tags & {"shared-encoder", "fetch-encoder", "weights", "gradient", "update"}


def test_replayed_steps_lead_to_the_same_bits(calm: Watched) -> None:
    """What the second car came to in its last turn, by its own steps and replayed ones, is what follows from
    the cloud's record alone."""
    ended = EndedRun(calm.fleet.config, calm.fleet.run_folder)
    bundle = EncoderBundle.load(calm.fleet.world.bundle)
    record = ended.steps(CARS[0])
    assert record is not None and len(record) == 4 * _STEPS_OF_TURN
    assert len(set(record.seeds.tolist())) == len(record)
    plan, adaptation = calm.fleet.config.way(SpsaPlan), ended.adaptation(CARS[0])
    theta = theta_after(bundle.spec, bundle.theta0, adaptation, plan, record.seeds, record.losses)
    assert not np.array_equal(theta, bundle.theta0)
    assert np.array_equal(calm.fleet.states(CARS[1]).load(4).theta, theta)
    earlier = record.page(0)
    part = slice(0, 3 * _STEPS_OF_TURN)
    before = theta_after(
        bundle.spec, bundle.theta0, adaptation, plan, earlier.seeds[part], earlier.losses[part]
    )
    assert np.array_equal(calm.fleet.states(CARS[0]).load(3).theta, before)


@pytest.mark.parametrize("victim", ["car", "cloud"])
def test_killed_process_changes_nothing(
    victim: str, calm: Watched, tiny_world: World, tmp_path: Path
) -> None:
    fleet = fleet_of(tiny_world, tmp_path)
    points = {
        ("car-1", "send-encoder", 1),
        ("car-2", "steps", 1),
        ("car-1", "query", 20),
        ("car-2", "done", 2),
    }
    Supervisor(fleet).run_with_kills(points, victim)
    assert fleet.fingerprint() == calm.fleet.fingerprint()
    assert fleet.scores() == calm.fleet.scores()


def test_steps_that_do_not_fit_or_look_like_no_others_are_not_the_fleet_s(
    tiny_world: World, tmp_path: Path
) -> None:
    """Of vehicles with 1, 2 and 3 train frames, in batches of one: so many steps of four losses each."""
    cars = ("a", "b", "c")
    steps = SharedSteps(context_of(fleet_of(tiny_world, tmp_path, vehicles=cars)))
    stage = Stage(number=1, round=1, kind=Kind.TRAIN, vehicles=cars)
    for number, car in enumerate(cars, start=1):
        turn = msgspec.structs.replace(turn_of(car, Shared(sends=True, head=False)), epochs=1)
        steps.begin(car)
        with pytest.raises(RequestError, match=f"3 of {4 * number} queries answered"):
            steps.take(turn, (), [1.0] * 3)
        with pytest.raises(RequestError, match="no weight crosses"):
            steps.take(turn, pack({PHI: np.zeros(1, np.float32)}), [1.0] * 4 * number)
        far = 100.0 if car == "c" else 1.0
        assert steps.take(turn, (), [1.0 + far, 1.0] * 2 * number) == (car != "c")
        assert steps.hand_on(stage, car) == (() if car != "c" else ("c",))
    assert len(steps.record("a")) == 1 + 2


@pytest.mark.parametrize(
    "changes",
    [{"zeroth_order": ZerothOrderConfig(estimator="activation")}, {"algorithm": "split"}],
    ids=["activation", "split"],
)
def test_seeds_are_refused_where_they_do_not_tell_a_step(
    changes: dict[str, Any], tiny_world: World, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=r"sharing.encoder .*(spsa-gc|blackfed-v1)"):
        check_combination(fleet_of(tiny_world, tmp_path, **changes).config)
