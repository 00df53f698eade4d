"""Estimators and learners that are not ours: allowed by the vehicle's operator, checked, exactly once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from fleet_fixtures import TinyFleet, World, interrupt
from page_fixtures import write_page_files
from supervision import Supervisor

from cloud_server.config import ZerothOrderConfig
from cloud_server.errors import CloudError
from edge_client.host import Host
from edge_client.learners.own import check_settings, find_learner
from fleet.run.checks import check_runnable, named_learners
from fleet.scenario import load_scenario
from protocol.doors import DoorError
from protocol.errors import Mistake
from protocol.messages import Ask
from protocol.plans import ESTIMATORS
from protocol.plans.activation import ActivationPlan
from protocol.plans.checks import Plan
from protocol.plans.own import OwnSettings
from protocol.plans.spsa import SpsaPlan
from protocol.session import topics

ONE_SIDED, ONE_BIT = "my_cars.estimators:one_sided", "my_cars.learners:one_bit"
ROW = "my_cars.algorithms:row"
ESTIMATOR_NAMES = {plan.section: plan.estimator for plan in ESTIMATORS.values()}

MODULE = """
import msgspec
from edge_client.estimators.activation import Activation
from edge_client.estimators.spsa import Spsa
from edge_client.optimizers import Adam, Nesterov

class Settings(msgspec.Struct, forbid_unknown_fields=True):
    rate: float = 1e-3
    def __post_init__(self):
        if self.rate <= 0:
            raise ValueError(f"rate must be above 0, got {self.rate}")

class Estimator:
    Settings = Settings
    def build(self, settings):
        return object()
    def optimizer(self, settings):
        return Adam(settings.rate)

class Learner:
    Settings = Settings
    def learn(self, tools, state, settings):
        return None

class Deaf(Learner):
    def learn(self, tools):
        return None

class Bare:
    pass

class Half:
    Settings = Settings

class Loose(Estimator):
    Settings = dict

class OurSpsa(Estimator):
    def build(self, settings):
        return Spsa(perturbation=0.005, queries=1)
    def optimizer(self, settings):
        return Nesterov(rate=settings.rate)

class OurActivation(Estimator):
    def build(self, settings):
        return Activation(seeds=2)

estimator, learner, deaf, bare, half, loose = Estimator(), Learner(), Deaf(), Bare(), Half(), Loose()
spsa, activation = OurSpsa(), OurActivation()
"""


@pytest.fixture
def module(foreign: Callable[[str, str], str]) -> str:
    return foreign("foreign_learners", MODULE)


@pytest.fixture(scope="module")
def my_cars(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The package of docs/extending.md, on the import path."""
    folder = tmp_path_factory.mktemp("page")
    write_page_files(folder)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_cars"]:
        del sys.modules[name]


def one_bit_fleet(world: World, folder: Path) -> TinyFleet:
    """One round by one bit a batch, one by one-sided differences."""
    fleet = TinyFleet(
        world,
        folder,
        algorithm=ROW,
        zeroth_order=ZerothOrderConfig(batches=2, batch_size=3, estimator=ONE_SIDED),
        own=OwnSettings(algorithm={"step": 0.02}, estimator={"rate": 1e-3}),
    )
    fleet.allowed_learners = (ONE_SIDED, ONE_BIT)
    return fleet


@pytest.fixture(scope="module")
def calm(my_cars: Path, tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> TinyFleet:
    fleet = one_bit_fleet(tiny_world, tmp_path_factory.mktemp("calm"))
    Supervisor(fleet).run()
    return fleet


def test_both_change_the_encoder(calm: TinyFleet) -> None:
    theta0 = calm.states("car-1").load(1).theta
    assert (calm.states("car-1").load(3).theta != theta0).any()
    sent = calm.result()["vehicles"]["car-1"]["uplink_bytes_by_type"]
    assert {"ask", "query"} < set(sent)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("spsa", {"spsa": SpsaPlan(perturbation=0.005, queries=1, rate=1e-3)}),
        ("activation", {"activation": ActivationPlan(seeds=2, rate=1e-3)}),
    ],
)
def test_estimator_of_somebody_else_learns_to_the_bit_as_the_same_of_ours(
    module: str, tiny_world: World, tmp_path: Path, name: str, ours: dict[str, Plan]
) -> None:
    """From losses and from loss maps."""
    fingerprints = []
    for estimator in (ESTIMATOR_NAMES[name], f"{module}:{name}"):
        zeroth_order = ZerothOrderConfig(batches=2, batch_size=3, estimator=estimator)
        fleet = TinyFleet(tiny_world, tmp_path / estimator, rounds=1, zeroth_order=zeroth_order, **ours)
        fleet.allowed_learners = (f"{module}:{name}",)
        Supervisor(fleet).run()
        fingerprints.append(fleet.fingerprint())
    assert fingerprints[0] == fingerprints[1]


def test_killed_processes_change_nothing(calm: TinyFleet, tmp_path: Path) -> None:
    fleet = one_bit_fleet(calm.world, tmp_path)
    points = {("car-1", "ask", 1), ("car-2", "told", 2), ("car-1", "query", 3)}
    Supervisor(fleet).run_with_kills(points)
    assert fleet.fingerprint() == calm.fingerprint()


@pytest.mark.parametrize(
    ("kind", "content", "words"),
    [
        ("Whatever", b"", "no question is called 'Whatever', expected one of: Which"),
        ("Which", b"\xc1", "this is no Which: "),
        ("Which", msgspec.msgpack.encode({"frames": "all"}), "this is no Which: "),
    ],
)
def test_question_that_does_not_fit_is_rejected_and_changes_nothing(
    calm: TinyFleet, tmp_path: Path, kind: str, content: bytes, words: str
) -> None:
    fleet = one_bit_fleet(calm.world, tmp_path)
    supervisor = Supervisor(fleet)
    interrupt(
        supervisor.bus,
        "ask",
        lambda turn, payload: (
            topics.UP,
            Ask(
                vehicle="car-1", grant=turn.grant, turn_id=turn.turn_id, step=999, kind=kind, content=content
            ),
        ),
    )
    supervisor.run()
    assert fleet.result()["vehicles"]["car-1"]["rejects"] == 1
    [reject] = fleet.events("reject")
    assert words in reject["reason"]
    assert fleet.fingerprint() == calm.fingerprint()


def test_vehicle_imports_nothing_that_its_operator_has_not_allowed(
    my_cars: Path, tiny_world: World, tmp_path: Path
) -> None:
    fleet = one_bit_fleet(tiny_world, tmp_path)
    fleet.allowed_learners = (ONE_SIDED,)
    with pytest.raises(CloudError, match=rf"learn by '{ONE_BIT}', which its operator has not allowed") as end:
        Supervisor(fleet).run()
    assert f"--allow-learner {ONE_BIT}" in str(end.value)


def test_allowed_learner_that_is_not_there_ends_the_host_before_it_joins(
    tiny_world: World, tmp_path: Path
) -> None:
    fleet = TinyFleet(tiny_world, tmp_path)
    fleet.allowed_learners = ("no_such_package:learner",)
    supervisor = Supervisor(fleet)
    with pytest.raises(DoorError, match="learner no_such_package:learner: no package or module"):
        Host(fleet.host(), supervisor.bus.client, supervisor._over)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("deaf", ["learn must take (tools, state, settings)", "takes (tools)"]),
        ("bare", ["lacks the attribute Settings", "a Bare"]),
        ("half", ["lacks the method build(settings)", "a Half"]),
        ("loose", ["its Settings must be a subclass of Struct"]),
        ("Learner", ["learn must take (tools, state, settings)"]),
    ],
)
def test_learner_that_does_not_fit_is_refused(module: str, name: str, words: list[str]) -> None:
    with pytest.raises(DoorError) as refusal:
        find_learner(f"{module}:{name}")
    assert str(refusal.value).startswith(f"learner {module}:{name}: ")
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rate": "fast"}, "Expected `float`, got `str` - at `$.rate`"),
        ({"speed": 1}, "unknown field `speed`"),
        ({"rate": -1.0}, "rate must be above 0, got -1"),
    ],
)
def test_settings_are_checked_by_their_own_struct(
    module: str, settings: dict[str, object], words: str
) -> None:
    with pytest.raises(DoorError) as refusal:
        check_settings(f"{module}:estimator", settings)
    assert words in str(refusal.value)
    overrides = {"zeroth_order.estimator": f"{module}:estimator", "own.estimator": settings}
    with pytest.raises(DoorError) as refusal:
        check_runnable(load_scenario(None, {"algorithm": "blackfed-v1", **overrides}))
    assert words in str(refusal.value)


def test_settings_of_what_is_ours_are_refused(module: str) -> None:
    with pytest.raises(Mistake, match=r"own\.estimator is for an estimator of your own.*'spsa-gc'"):
        load_scenario(None, {"own.estimator": {"rate": 1}})
    with pytest.raises(Mistake, match=r"blackfleet takes no settings in own\.algorithm, got rate"):
        check_runnable(load_scenario(None, {"own.algorithm": {"rate": 1}}))


def test_launched_fleet_allows_what_the_run_names(my_cars: Path, module: str) -> None:
    assert named_learners(load_scenario(None, {})) == ()
    scenario = load_scenario(None, {"algorithm": ROW, "zeroth_order.estimator": f"{module}:estimator"})
    assert named_learners(scenario) == (f"{module}:estimator", ONE_BIT)
    with pytest.raises(Mistake, match=r"own\.algorithm of my_cars.*Expected `int`, got `str`"):
        check_runnable(load_scenario(None, {"algorithm": ROW, "own.algorithm": {"one_bit_rounds": "two"}}))
