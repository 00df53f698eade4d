"""What a shell completes: commands, options, their values, and the keys of settings."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from cloud_server.algorithms.table import ALGORITHMS
from fleet.cli.app import app
from fleet.cli.completion import complete_setting
from fleet.cli.options import SCENARIO_OPTIONS
from fleet.errors import OperatorError
from fleet.presets import PRESETS
from fleet.run.resuming import flat
from fleet.scenario import Scenario, load_scenario


def _completed(line: str) -> list[str]:
    """What bash is offered for the last word of a line."""
    environment = {
        "_BLACKFLEET_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }
    outcome = CliRunner().invoke(app, [], prog_name="blackfleet", env=environment)
    return outcome.output.splitlines()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("blackfleet la", ["launch", "label"]),
        ("blackfleet dataset ", ["generate", "describe"]),
        ("blackfleet launch --algo", ["--algorithm"]),
        ("blackfleet launch --algorithm ", list(ALGORITHMS)),
        ("blackfleet compare --preset ", list(PRESETS)),
        ("blackfleet launch --set first_order.b", ["first_order.batch_size="]),
    ],
)
def test_words_are_completed(line: str, offered: list[str]) -> None:
    assert _completed(line) == offered


def test_every_setting_is_offered_and_explained() -> None:
    offered = dict(complete_setting(""))
    settings = {key for key in flat(Scenario()) if not key.endswith(".type")}
    tables = {"conditions", "encoders", "own.algorithm", "own.estimator"}
    tables |= {f"simulation.{name}" for name in ("budgets", "cells", "links")}
    assert {key.removesuffix("=") for key in offered} == settings | tables
    assert all(offered.values())


@pytest.mark.parametrize("option", [o for o in SCENARIO_OPTIONS if o.choices], ids=lambda option: option.name)
def test_what_is_offered_is_taken(option: object) -> None:
    needed = {"dataset.root": "here"}
    for choice in option.choices:  # type: ignore[attr-defined]
        value = option.type(choice)  # type: ignore[attr-defined]
        given = {**needed, option.key: value}  # type: ignore[attr-defined]
        if choice == "test":
            given["dataset.name"] = "cityscapes"
        try:
            load_scenario(None, given)
        except OperatorError as error:
            assert "must be one of" not in str(error) and "unknown" not in str(error), error
