"""The `blackfleet` command: what it offers, and how it speaks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
from process_fixtures import ROOT, module, run
from typer.testing import CliRunner

from fleet.cli.app import app as cli


def _commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from _commands(child, (*path, name))


COMMANDS = list(_commands(typer.main.get_command(cli)))


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: " ".join(path) or "blackfleet")
def test_help_of_every_command_says_what_it_does(path: tuple[str, ...]) -> None:
    outcome = CliRunner().invoke(cli, [*path, "--help"])
    assert outcome.exit_code == 0, outcome.output
    assert outcome.output.lstrip().lower().startswith("usage:"), outcome.output
    command = typer.main.get_command(cli)
    for name in path:
        command = command.commands[name]  # type: ignore[attr-defined]
    assert command.help, f"{path} has no description"
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name != "help":
            assert parameter.help, f"{' '.join(path)} {parameter.opts[0]} is not explained"


def test_the_commands_that_the_documents_name_are_there() -> None:
    assert {
        ("launch",),
        ("evaluate",),
        ("dataset", "generate"),
        ("encoder", "export"),
    } <= set(COMMANDS)
    assert 'blackfleet = "fleet.cli.__main__:main"' in (ROOT / "pyproject.toml").read_text().splitlines()


def test_a_command_without_arguments_shows_its_help() -> None:
    done = run(module("fleet.cli"))
    assert done.returncode == 2
    assert "launch" in done.stdout + done.stderr


LIGHT = """
import runpy, sys

def codes(module, *commands):
    for arguments in commands:
        sys.argv = [module, *arguments.split()]
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as ending:
            yield ending.code

commands = ["--help", "launch --help", "compare --help", "launch --rounds many", "launch --rounds 0",
            "compare --algorithms nothing --compare-dir nowhere", "encoder check nothing",
            "evaluate nowhere nowhere"]
operator = [*codes("fleet.cli", *commands)]
cloud = [*codes("cloud_server", "--help", "--run-dir nowhere --broker mqtt://nowhere --rounds 0")]
print(operator, cloud, *{"torch", "matplotlib", "onnx"} & set(sys.modules), file=sys.stderr)
"""


def test_help_and_mistakes_load_nothing_that_takes_seconds(tmp_path: Path) -> None:
    """In a clean interpreter: no torch, no charts."""
    done = run([sys.executable, "-c", LIGHT], cwd=tmp_path)
    assert done.stderr.splitlines()[-1] == "[0, 0, 0, 2, 2, 2, 2, 2] [0, 2]", done.stderr


def test_an_option_of_the_wrong_type_is_refused_without_traceback() -> None:
    outcome = CliRunner().invoke(cli, ["launch", "--vehicles", "many"])
    assert outcome.exit_code == 2
    assert "--vehicles" in outcome.output


def test_a_mistake_in_encoder_export_ends_in_one_line(tmp_path: Path) -> None:
    done = run(module("fleet.cli", "encoder", "export", tmp_path / "bundle", "--encoder", "resnet"))
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("blackfleet: unknown encoder 'resnet', expected one of: ")
