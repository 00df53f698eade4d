"""Output whose reader leaves: the command goes on, and ends with its own code."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest
from process_fixtures import WAIT_S, environment, module, write_scenario

pytestmark = pytest.mark.timeout(300)


def _left_after_one_line(command: list[str], *, stderr: int) -> tuple[bytes, int]:
    """The first line of a command whose reader leaves then, and its exit code."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=environment())
    assert process.stdout is not None
    line = process.stdout.readline()
    process.stdout.close()
    return line, process.wait(WAIT_S)


def test_a_run_goes_on_without_its_reader(tmp_path: Path, frames_root: Path) -> None:
    changes = {"algorithm": "centralized", "rounds": 2, "broker": "memory"}
    scenario = write_scenario(tmp_path / "scenario.yaml", frames_root, **changes)
    arguments = ("launch", "--scenario", scenario, "--run-dir", tmp_path / "run")
    line, code = _left_after_one_line(module("fleet.cli", *arguments), stderr=subprocess.STDOUT)
    assert (bool(line), code) == (True, 0)
    assert (tmp_path / "run" / "result.json").is_file()


def test_help_is_no_failure_without_its_reader() -> None:
    line, code = _left_after_one_line(module("fleet.cli", "launch", "--help"), stderr=subprocess.DEVNULL)
    assert (line.strip() or b"Usage", code) == (b"Usage", 0)


def test_a_mistake_keeps_its_code_without_a_reader() -> None:
    for name in ("fleet.cli", "cloud_server", "edge_client"):
        reader, writer = os.pipe()
        os.close(reader)
        arguments = {"fleet.cli": ("launch", "--rounds", "0"), "cloud_server": ("--run-dir", "none")}.get(
            name, ()
        )
        process = subprocess.Popen(module(name, *arguments), stdout=writer, stderr=writer, env=environment())
        os.close(writer)
        assert process.wait(WAIT_S) == 2, name


def test_a_mistake_keeps_its_code_where_a_full_disk_has_no_room_for_words() -> None:
    with Path("/dev/full").open("wb") as full:
        process = subprocess.Popen(module("edge_client"), stdout=full, stderr=full, env=environment())
        assert process.wait(WAIT_S) == 2


def test_a_terminal_that_is_closed_ends_no_command(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = module("fleet.cli", "dataset", "generate", tmp_path / "d", "--cities", "1", "--frames", "4")
    process = subprocess.Popen(
        [*command, "--image-size", "32x32"], stdout=theirs, stderr=theirs, env=environment()
    )
    os.close(theirs)
    os.close(ours)
    assert process.wait(WAIT_S) == 0
    assert len(list((tmp_path / "d").rglob("*_labelIds.png"))) == 4
