"""What doesn't fit behind `package.module:name` on the command line: one line, exit code 2, nothing begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet.cli import app as cli


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--encoder", "cars:"], ["encoder", "package.module:name", "'cars:'"]),
        (["--encoder", "cars.encoders:build"], ["'cars'", "PYTHONPATH"]),
        (["--encoder", "json:dumps"], ["encoder json:dumps", "must take ()", "takes (obj"]),
        (["--vehicle-encoder", "car-02=cars:build"], ["encoder cars:build", "PYTHONPATH"]),
        (["--network", "json:load"], ["network json:load", "AttributeError", "json/__init__.py, line"]),
        (["--network", "json:JSONDecoder"], ["network json:JSONDecoder"]),
        (["--dataset", "json:dumps", "--data-root", "."], ["json:dumps", "DatasetEntry", "dumps(obj"]),
        (["--algorithm", "json:dumps"], ["algorithm json:dumps", "AlgorithmRow", "dumps(obj"]),
        (["--estimator", "json:dumps", "--algorithm", "blackfed-v1"], ["learner json:dumps", "Settings"]),
    ],
    ids=" ".join,
)
def test_command_is_refused_before_anything_is_done(
    options: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    monkeypatch.setattr("sys.argv", ["blackfleet", "launch", "--run-dir", str(folder), *options])
    with pytest.raises(SystemExit) as ending:
        cli.main()
    [line] = capfd.readouterr().err.splitlines()
    assert ending.value.code == 2
    assert line.startswith("blackfleet: ") and all(word in line for word in words), line
    assert not folder.exists()
