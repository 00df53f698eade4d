"""`--set`: every setting of a scenario, checked as in a file; and the groups that options stand in."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest
import typer
from process_fixtures import Refuse

from fleet.cli.app import app
from fleet.cli.observers import OBSERVING
from fleet.cli.options import OPTION_GROUPS
from fleet.cli.placed import GROUP
from fleet.cli.set_option import parse_settings
from fleet.errors import OperatorError
from fleet.run.resuming import flat
from fleet.scenario import Scenario, load_scenario

DEFAULTS = {
    key: value
    for key, value in flat(Scenario()).items()
    if not key.endswith(".type")  # which plan it is says the section
}


def _with(*texts: str) -> Scenario:
    return load_scenario(None, {}, settings=parse_settings(texts, taken={}))


def test_every_setting_can_be_set() -> None:
    assert len(DEFAULTS) > 100
    texts = [f"{key}={json.dumps(value)}" for key, value in DEFAULTS.items()]
    assert _with(*texts) == Scenario()


def test_an_unknown_key_is_refused_in_every_section() -> None:
    for section in {key.rpartition(".")[0] for key in DEFAULTS}:
        unknown = f"{section}.no_such_key" if section else "no_such_key"
        with pytest.raises(OperatorError, match=f"^--set {unknown}=1: unknown key {unknown}; "):
            _with(f"{unknown}=1")


def test_a_value_of_the_wrong_type_is_refused() -> None:
    for key in (key for key, value in DEFAULTS.items() if isinstance(value, int | float)):
        with pytest.raises(OperatorError, match=f"^--set {key}=many: Expected "):
            _with(f"{key}=many")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["rounds"], "--set must be KEY=VALUE such as first_order.rate=1e-3, got 'rounds'"),
        (["seed=1", "--seed", "2"], "--set seed=1: --seed gives seed, too; keep one of them"),
        (["seed=1", "--set", "seed=2"], "--set seed=2: another --set gives seed, too; keep one of them"),
        (["first_order={epochs: 3}", "--foo-epochs", "2"], "--foo-epochs gives first_order.epochs, too"),
        (
            ["schedule=x"],
            "key schedule; did you mean local_loss.schedule or first_order.schedule or "
            "zeroth_order.schedule?",
        ),
        (["rounds=[1"], "--set rounds=[1: the value is not YAML: "),
        (["rounds.x=1"], "--set rounds.x=1: rounds is a single value and has no 'x'"),
        (["rounds=0"], "scenario: rounds must be at least 1, got 0"),
        (["class_weights.car=-1"], "scenario: class_weights.car must be finite and at least 0, got -1"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: list[str], line: str, refuse: Refuse) -> None:
    assert line in refuse("launch", "--set", *arguments)


def test_a_setting_that_plays_no_part_is_refused(refuse: Refuse) -> None:
    line = refuse("compare", "--algorithms", "fedavg", "--compare-dir", "none", "--set", "seed=3")
    assert line == "blackfleet: --set seed=3: seed plays no part in this command; leave it out"


def test_values_are_yaml_and_tables_are_filled() -> None:
    scenario = _with("first_order.rate=1e-3", "conditions.car-01=fog:3", "conditions.car-02=rain:1")
    assert scenario.first_order.rate == 1e-3
    assert scenario.conditions == {"car-01": "fog:3", "car-02": "rain:1"}
    assert _with("dataset.test_split=null", "dataset.cities=[a, b]").dataset.cities == ("a", "b")
    assert _with("own.algorithm.speed=2").own.algorithm == {"speed": 2}  # type: ignore[attr-defined]


# Help ------------------------------------------------------------------------------------------------------


def _options(command: str) -> list[Any]:
    return [p for p in typer.main.get_command(app).commands[command].params if p.opts[0].startswith("--")]  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", ["launch", "pretrain", "compare"])
def test_few_options_stand_first_and_all_others_in_a_group(command: str) -> None:
    titles = [group.title for group in OPTION_GROUPS if group.title]
    panels = {option.opts[0]: getattr(option, "rich_help_panel", None) for option in _options(command)}
    first = [name for name, panel in panels.items() if panel is None]
    assert set(panels.values()) - {None} <= {*titles, OBSERVING, GROUP}
    assert len(first) <= 13
    if command == "launch":
        assert sorted(first) == sorted(
            [
                "--preset",
                "--scenario",
                "--dataset",
                "--data-root",
                "--vehicles",
                "--algorithm",
                "--rounds",
                "--seed",
                "--run-dir",
                "--resume",
                "--set",
            ]
        )


def test_no_option_is_in_two_groups_and_each_has_a_setting() -> None:
    keys = [option.key for group in OPTION_GROUPS for option in group.options]
    names = [option.name for group in OPTION_GROUPS for option in group.options]
    assert len(keys) == len(set(keys)) and len(names) == len(set(names))
    known = set(flat(Scenario())) | set(msgspec.structs.asdict(Scenario())) | {"simulation.links"}  # a table
    assert set(keys) <= known
    assert all(re.fullmatch(r"--[a-z-]+", option.flag) for group in OPTION_GROUPS for option in group.options)
