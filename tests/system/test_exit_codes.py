"""What a process ends with: one line and code 2 for a mistake, a traceback and code 1 for a bug."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from process_fixtures import module, run

import fleet.cli.app as command_line
from fleet.errors import OperatorError
from fleet.export.convolutions import ConvolutionEncoder
from fleet.run.processes import ProcessSpec, ProcessTable

CLOUD = ("--broker=mqtt://127.0.0.1:1", "--fleet=f", "--vehicles=a")
PROCESSES = {
    "cloud_server": ("cloud_server.command", "_config", CLOUD),
    "edge_client": ("edge_client.command", "_config", ("--broker=mqtt://127.0.0.1:1",)),
    "fleet.broker": ("fleet.broker", "choose_kind", ("--port=18831",)),
    "fleet.cli": ("fleet.cli.evaluate", "run_evaluate", ("evaluate", "predictions", "labels")),
}
"""By process: the module and its function that is made to have a bug, and arguments that lead there."""

DRIVER = """
import importlib, sys
home, name, process, raised, *sys.argv[1:] = sys.argv[1:]
def broken(*arguments, **options):
    mistake = importlib.import_module("protocol.errors").Mistake
    raise (ValueError if raised == "bug" else mistake)("too bad")
setattr(importlib.import_module(home), name, broken)
main = importlib.import_module("fleet.cli.app" if process == "fleet.cli" else home).main
sys.exit(main())
"""


def _driven(process: str, raised: str, run_folder: Path) -> tuple[int, str]:
    """Exit code and what was said by a process in which `raised` is raised."""
    home, name, arguments = PROCESSES[process]
    if process == "cloud_server":
        arguments = (*arguments, f"--run-dir={run_folder}")
    ended = run([sys.executable, "-c", DRIVER, home, name, process, raised, *arguments])
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("process", PROCESSES)
def test_bug_ends_with_a_traceback_and_code_1(process: str, tmp_path: Path) -> None:
    code, said = _driven(process, "bug", tmp_path)
    assert code == 1, said
    assert "Traceback" in said and said.splitlines()[-1] == "ValueError: too bad"


@pytest.mark.parametrize("process", PROCESSES)
def test_mistake_ends_with_one_line_and_code_2(process: str, tmp_path: Path) -> None:
    code, said = _driven(process, "mistake", tmp_path)
    assert code == 2, said
    assert len(said.splitlines()) == 1 and said.endswith(": too bad\n")


def test_damaged_result_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{")
    ended = run(module("fleet.cli", "report", tmp_path))
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1), ended.stderr
    assert "result.json is not JSON" in ended.stderr


def _table(folder: Path, program: str) -> ProcessTable:
    return ProcessTable([ProcessSpec(name="one", command=[sys.executable, "-c", program])], folder)


def test_process_with_a_bug_is_started_again_a_few_times(tmp_path: Path) -> None:
    program = f"open({str(tmp_path / 'starts')!r}, 'a').write('x'); raise ValueError('too bad')"
    with pytest.raises(OperatorError, match="ValueError: too bad"), _table(tmp_path / "p", program) as table:
        while table.check():
            pass
    assert (tmp_path / "starts").read_text() == "xxx"


def test_process_with_a_mistake_is_not_started_again(tmp_path: Path) -> None:
    program = f"import sys; open({str(tmp_path / 'starts')!r}, 'a').write('x'); sys.exit('one: no such file')"
    program = program.replace("sys.exit(", "sys.stderr.write(") + "; sys.exit(2)"
    with pytest.raises(OperatorError, match="one: no such file"), _table(tmp_path / "p", program) as table:
        while table.check():
            pass
    assert (tmp_path / "starts").read_text() == "x"


def test_process_that_is_killed_before_it_is_ready_is_started_again(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    program = f"import os, time; open({str(starts)!r}, 'a').write('x')\n"
    program += f"os.path.getsize({str(starts)!r}) > 1 or os.kill(os.getpid(), 9); time.sleep(60)"

    def is_ready() -> bool:
        return starts.exists() and starts.read_text() == "xx"

    spec = ProcessSpec(name="one", command=[sys.executable, "-c", program], is_ready=is_ready)
    with ProcessTable([spec], tmp_path / "p") as table:
        assert table.check()
    assert starts.read_text() == "xx"


def test_export_whose_check_fails_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ConvolutionEncoder, "rgb_mean", (0.5, 0.5, 0.5))
    arguments = ["encoder", "export", str(tmp_path / "bundle"), "--image-size", "64x48"]
    monkeypatch.setattr("sys.argv", ["blackfleet", *arguments])
    with pytest.raises(SystemExit) as ending:
        command_line.main()
    said = capfd.readouterr().err
    assert (ending.value.code, len(said.splitlines())) == (2, 1), said
    assert said.startswith("blackfleet: ") and "the features of ONNX and torch differ by" in said
    assert not (tmp_path / "bundle").exists()
