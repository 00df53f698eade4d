"""Gives a command `--preset`, `--scenario` and the options of the table, and the scenario that they make."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from fleet.cli.completion import complete_setting, completing
from fleet.cli.option import OptionGroup, ScenarioOption
from fleet.cli.options import FIRST, OPTION_GROUPS, SCENARIO_OPTIONS
from fleet.cli.set_option import parse_settings
from fleet.errors import OperatorError
from fleet.presets import PRESETS
from fleet.run.folder import SCENARIO_NAME
from fleet.scenario import Scenario, load_scenario

_PRESET = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="Begin with one of our scenarios: "
        + "; ".join(f"{name}: {title}" for name, title in PRESETS.items())
        + ". --scenario and the other options override it.",
        autocompletion=completing(tuple(PRESETS)),
    ),
]
_DEFAULTS = Scenario()
_SCENARIO_FILE = Annotated[
    Path | None, typer.Option("--scenario", help="Scenario file (YAML); the other options override it.")
]
_SET = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any other setting of a scenario, such as first_order.rate=1e-3; repeat for more. "
        "`blackfleet init` writes a file with all of them.",
        autocompletion=complete_setting,
    ),
]


def with_scenario_options(
    *, without: Collection[str] = (), resumes: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command `--preset`, `--scenario` and the options of the table, but for the keys in `without`.

    The command has a parameter `scenario`, and gets the `Scenario` that all of them make; an OperatorError
    of the file or of a value goes through. `resumes` is the command's parameter for the folder of a run: with
    its parameter `resume`, file and options are put over that run's own settings.
    """
    options = [option for option in SCENARIO_OPTIONS if option.key not in without]
    no_part = {
        option.key: f"{option.key} plays no part in this command; leave it out"
        for option in SCENARIO_OPTIONS
        if option.key in without
    }

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(
            *, preset: str | None, scenario_file: Path | None, settings: list[str] | None, **given: Any
        ) -> None:
            overrides = {option.key: _plain(option, given.pop(option.name)) for option in options}
            taken = {
                option.key: f"{option.flag} gives {option.key}, too; keep one of them"
                for option in options
                if overrides[option.key] is not None
            }
            table = parse_settings(settings or (), taken={**taken, **no_part})
            kept = given.get(resumes) if resumes is not None and given.get("resume") else None
            scenario = load_scenario(
                scenario_file, overrides, kept=_kept_settings(kept), preset=preset, settings=table
            )
            command(scenario=scenario, **given)

        own = inspect.signature(command, eval_str=True).parameters.values()
        parameters = [
            _parameter("preset", _PRESET),
            _parameter("scenario_file", _SCENARIO_FILE),
            *_parameters(FIRST, options),
        ]
        parameters += [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in own
            if parameter.name != "scenario"
        ]
        parameters.append(_parameter("settings", _SET))
        for group in OPTION_GROUPS:
            parameters += _parameters(group, options) if group is not FIRST else []
        # What Typer reads in place of the function's own signature.
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _kept_settings(run_folder: Path | None) -> Path | None:
    """Of a run that is to go on, if there is one."""
    if run_folder is None or not (run_folder / SCENARIO_NAME).is_file():
        return None
    return run_folder / SCENARIO_NAME


def _parameters(group: OptionGroup, options: Collection[ScenarioOption]) -> list[inspect.Parameter]:
    """A parameter for each option of the group that the command has."""
    return [
        _parameter(
            option.name,
            Annotated[
                option.type | None,
                typer.Option(
                    help=option.help,
                    show_default=_default(option) or False,
                    rich_help_panel=group.title or None,
                    autocompletion=completing(option.choices) if option.choices else None,
                ),
            ],
        )
        for option in group.options
        if option in options
    ]


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _default(option: ScenarioOption) -> str:
    """What holds where neither a file nor an option says otherwise; empty where that is nothing."""
    value: Any = _DEFAULTS
    for name in option.key.split("."):
        value = getattr(value, name)
    return "" if value is None or value in ({}, ()) else str(value)


def _plain(option: ScenarioOption, value: Any) -> Any:
    """As it would stand in a scenario file; None = not given."""
    if isinstance(value, list) and not option.by_vehicle:
        return value or None
    if isinstance(value, list):
        return _by_vehicle(option, value) or None
    return str(value) if isinstance(value, Path) else value


def _by_vehicle(option: ScenarioOption, texts: Sequence[str]) -> dict[str, str]:
    """Values by vehicle of `car-01=…`, `car-02=…`."""
    values: dict[str, str] = {}
    for text in texts:
        vehicle, equals, value = text.partition("=")
        if not (vehicle and equals and value):
            raise OperatorError(f"{option.flag} must be VEHICLE=VALUE such as car-01=…, got {text!r}")
        if vehicle in values:
            raise OperatorError(
                f"{option.flag} names vehicle {vehicle} twice, with {values[vehicle]} and {value}; keep one "
                "of them"
            )
        values[vehicle] = value
    return values
