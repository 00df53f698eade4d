"""Options that benchmarks share: what they read, and the one line for what they can't."""

from __future__ import annotations

import argparse
import importlib
import pkgutil

import pytest

import benchmarks
from benchmarks.options import read_seeds, some_of


def test_some_of_keeps_the_known_order() -> None:
    assert some_of(("a", "b, c", "d"))("d;b, c") == ("b, c", "d")
    assert some_of(("fog", "night"), separator=",")("fog") == ("fog",)


@pytest.mark.parametrize("text", ["0,x", "", "-1", "1,1"])
def test_seeds_that_are_none_end_in_one_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=read_seeds)
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args([f"--seeds={text}"])
    assert stopped.value.code == 2
    assert "--seeds" in capsys.readouterr().err.splitlines()[-1]


def test_an_unknown_name_is_told_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--methods", type=some_of(("frozen", "split")), default="frozen;split")
    assert parser.parse_args([]).methods == ("frozen", "split")
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(["--methods", "frozen;spilt"])
    assert stopped.value.code == 2
    assert "unknown 'spilt', expected some of: frozen; split" in capsys.readouterr().err


RUN_ELSEWHERE = {"benchmarks.flower_app"}
"""Run in an environment of their own, of whose packages this one has none."""


def test_every_benchmark_can_be_imported() -> None:
    """What a benchmark takes from the packages is there: nobody runs all of them after every change."""
    for module in pkgutil.iter_modules(benchmarks.__path__, "benchmarks."):
        if module.name not in RUN_ELSEWHERE:
            importlib.import_module(module.name)
