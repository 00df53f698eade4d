"""Ways of learning: each is declared once, and the same struct stands wherever it is used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_server.config import CloudConfig, RunSettings
from edge_client.learners import LEARNERS
from fleet.scenario import Scenario, load_scenario
from protocol.base import Answer, Request
from protocol.errors import SettingError
from protocol.messages import Down, Turn, Up
from protocol.plans import ESTIMATORS, PLANS, WAYS
from protocol.plans.checks import Section
from protocol.plans.coding import Coding
from protocol.plans.federated import FederatedPlan
from protocol.plans.local_loss import LocalLossPlan
from protocol.plans.own import OwnPlan
from protocol.plans.spsa import SpsaPlan

ROOT = Path(__file__).resolve().parents[2]


def turn(**changes: Any) -> Turn:
    settings = {
        "vehicle": "car-1",
        "grant": "0" * 8,
        "turn_id": 1,
        "step": 0,
        "after_turn": None,
        "seed": 0,
        "learner": None,
        "epochs": 2,
        "batches": 0,
        "batch_size": 8,
        "uploads": ("train",),
    }
    return Turn(**{**settings, **changes})


# Declared once ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [Scenario, CloudConfig])
def test_every_section_knows_the_key_that_it_stands_under(settings: type[msgspec.Struct]) -> None:
    sections = {
        field.name: field.type
        for field in msgspec.structs.fields(settings)
        if isinstance(field.type, type) and issubclass(field.type, Section)
    }
    assert set(WAYS) < set(sections)
    assert {name: section.section for name, section in sections.items()} == {name: name for name in sections}


def test_plans_are_tagged_by_their_sections_and_each_has_a_learner() -> None:
    assert {plan.__struct_config__.tag: plan for plan in PLANS.values()} == PLANS
    assert set(LEARNERS) == {*PLANS.values(), OwnPlan}
    assert set(ESTIMATORS) == {"spsa-gc", "activation", "surrogate", "region-spsa"}


def test_what_is_said_for_one_way_is_part_of_the_protocol() -> None:
    assert set(Request.__subclasses__()) < set(get_args(Up))
    assert set(Answer.__subclasses__()) < set(get_args(Down))


def test_cloud_and_scenario_hold_the_same_structs() -> None:
    scenario = Scenario(spsa=SpsaPlan(queries=3), local_loss=LocalLossPlan(epochs=3), coding=Coding(bits=4))  # type: ignore[call-arg]
    config = scenario.cloud_config()
    for name in RunSettings.__struct_fields__:
        assert getattr(config, name) == getattr(scenario, name), name
    assert config.estimator is scenario.way(SpsaPlan)


_NEW_WAY = """
from protocol.base import Request
from protocol.plans.checks import Plan

class PatientPlan(Plan, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="patient"):
    section = "patient"
    rate: float = 1e-3
    def __post_init__(self) -> None:
        self._above(0, "rate")

class Whisper(Request, frozen=True, array_like=True, kw_only=True, tag="whisper"):
    loss: float
"""
_USE_OF_IT = """
import msgspec
from protocol.messages import Turn, Up
from protocol.plans.patient import PatientPlan, Whisper
from cloud_server.config import CloudConfig
config = msgspec.convert({"fleet": "f", "vehicles": ["a"], "patient": {"rate": 1}}, CloudConfig)
identity = {"vehicle": "a", "grant": "0" * 8, "turn_id": 1, "step": 0}
turn = Turn(**identity, after_turn=None, seed=0, learner=config.way(PatientPlan), epochs=1, batches=0,
            batch_size=1, uploads=())
assert msgspec.msgpack.decode(msgspec.msgpack.encode(turn), type=Turn).learner == PatientPlan(rate=1.0)
said = Whisper(**identity, loss=1.0)
assert msgspec.msgpack.decode(msgspec.msgpack.encode(said), type=Up) == said
try:
    msgspec.convert({"fleet": "f", "vehicles": ["a"], "patient": {"rate": 0}}, CloudConfig)
except msgspec.ValidationError as error:
    print(error)
"""


def test_a_new_way_is_one_file_here(tmp_path: Path) -> None:
    """Its section, its plan in a turn and its messages: nothing else in the room names it."""
    shutil.copytree(ROOT / "protocol", tmp_path / "protocol", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "protocol" / "plans" / "patient.py").write_text(_NEW_WAY)
    run = subprocess.run(
        [sys.executable, "-c", _USE_OF_IT],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("patient.rate must be above 0, got 0.0")


# On the wire ------------------------------------------------------------------------------------------


@given(
    plan=st.one_of(
        st.builds(
            SpsaPlan,
            perturbation=st.floats(1e-6, 1),
            queries=st.integers(1, 99),
            rate=st.floats(1e-9, 1),
            momentum=st.floats(0, 0.99),
        ),
        st.builds(FederatedPlan, proximal=st.floats(0, 1), patience_rounds=st.none() | st.integers(1, 9)),
        st.builds(LocalLossPlan, epochs=st.integers(0, 99), weight_power=st.floats(0, 2)),
    )
)
def test_a_turn_carries_the_very_struct_that_a_table_describes(plan: Any) -> None:
    table = msgspec.to_builtins(plan)
    del table["type"]
    sent = turn(learner=msgspec.convert(table, type(plan)))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=Turn).learner == plan


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_a_rate_out_of_range_is_refused_by_key_and_value_wherever_it_comes_from(
    plan: type, value: float
) -> None:
    section = plan.section  # type: ignore[attr-defined]
    key = next((name for name in ("rate", "proximal") if name in plan.__struct_fields__), None)  # type: ignore[attr-defined]
    assert key is not None
    line = rf"{section}\.{key} must be (above|at least) 0, got {value}"
    with pytest.raises(SettingError, match=line):
        plan(**{key: value})
    content = list(msgspec.to_builtins(turn()))
    content[Turn.__struct_fields__.index("learner") + 1] = {"type": section, key: value}
    with pytest.raises(msgspec.ValidationError, match=line):
        msgspec.msgpack.decode(msgspec.msgpack.encode(content), type=Turn)
    with pytest.raises(Exception, match=line):
        load_scenario(None, {f"{section}.{key}": value})


def test_a_coding_that_no_channel_can_have_is_refused() -> None:
    for settings, line in (
        ({"bits": 7}, "coding.bits must be one of 32, 8, 6, 4, 3, 2, got 7"),
        ({"frame_bytes": 0}, "coding.frame_bytes must be at least 1, got 0"),
        ({"bits": 32, "frame_bytes": 3000}, "coding.frame_bytes of 3000 needs bits of 8 or fewer, got 32"),
    ):
        with pytest.raises(SettingError, match=line):
            Coding(**settings)


def test_objective_is_of_every_turn_of_a_run() -> None:
    """Also where nothing is learnt: train frames that are uploaded for their statistics need no label."""
    entropy = msgspec.convert({"objective": "entropy"}, type(turn().adaptation))
    assert not turn(adaptation=entropy).follows_labels
    assert turn().follows_labels
    assert not turn(adaptation=entropy, learner=SpsaPlan()).follows_labels
    assert turn(learner=SpsaPlan()).follows_labels
