"""What stands behind `package.module:name`: found, checked, and each misfit told in one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.doors import Door, DoorError, file_name, is_foreign, load

MODULE = '''
"""A package of somebody else's."""
import msgspec

class Numbers(msgspec.Struct):
    rate: float = 1.0

class Horn:
    name = "horn"
    Settings = Numbers
    def sound(self, loudness, *, seed):
        return loudness

class Mute:
    name = "mute"
    Settings = Numbers

class Deaf(Horn):
    def sound(self):
        return 0

class Nameless(Horn):
    name = 3

class Strange(Horn):
    Settings = dict

horn, mute, deaf, nameless, strange = Horn(), Mute(), Deaf(), Nameless(), Strange()

def build(spec):
    return spec

def build_without():
    return 1

def broken(spec):
    return 1 / 0
'''


class Sounds(Protocol):
    name: str
    Settings: type[msgspec.Struct]

    def sound(self, loudness: float, *, seed: int) -> float: ...


class Builds(Protocol):
    def __call__(self, spec: str) -> object: ...


def ours(spec: str) -> object:
    return spec


HORNS: Door[Sounds] = Door("horn", Sounds, {})
BUILDERS: Door[Builds] = Door("builder", Builds, {"ours": ours})


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `cars_of_mine` on the import path, forgotten afterwards."""
    folder = tmp_path / "cars_of_mine"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "parts.py").write_text(MODULE)
    (folder / "typo.py").write_text("def build(:\n")
    (folder / "zero.py").write_text("LIMIT = 3\nshare = LIMIT / 0\n")
    (folder / "needs.py").write_text("import a_library_that_nobody_has\n")
    (folder / "leaves.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "cars_of_mine"]:
        del sys.modules[name]


def test_name_of_ours_and_somebody_elses_are_found() -> None:
    assert BUILDERS.find("ours") is ours
    assert BUILDERS.find("cars_of_mine.parts:build")("here") == "here"
    assert HORNS.find("cars_of_mine.parts:horn").sound(0.5, seed=1) == 0.5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("theirs", ["unknown builder 'theirs'", "ours", "package.module:name"]),
        ("a:b:c", ["package.module:name", "'a:b:c'"]),
        (":build", ["package.module:name"]),
        ("cars_of_mine.parts:", ["package.module:name"]),
        ("no_such_package.parts:build", ["no_such_package", "install it", "PYTHONPATH"]),
        ("cars_of_mine.wheels:build", ["cars_of_mine has no module 'wheels'"]),
        ("cars_of_mine.parts.deep:build", ["cars_of_mine.parts has no module 'deep'"]),
        ("cars_of_mine.parts:biuld", ["has no 'biuld'", "did you mean 'build'"]),
        ("cars_of_mine.parts:zzz", ["has no 'zzz'", "it has"]),
        ("cars_of_mine.needs:build", ["failed", "a_library_that_nobody_has", "needs.py, line 1"]),
        ("cars_of_mine.zero:build", ["ZeroDivisionError", "zero.py, line 2"]),
        ("cars_of_mine.typo:build", ["SyntaxError", "typo.py, line 1"]),
        ("cars_of_mine.leaves:build", ["SystemExit", "leaves.py, line 1"]),
        ("cars_of_mine.parts:horn", ["must be callable with (spec)", "a Horn"]),
        ("cars_of_mine.parts:build_without", ["must take (spec)", "takes ()"]),
    ],
)
def test_builder_that_does_not_fit_is_refused_in_one_line(name: str, words: list[str]) -> None:
    with pytest.raises(DoorError) as refusal:
        BUILDERS.find(name)
    line = str(refusal.value)
    assert "\n" not in line
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mute", ["lacks the method sound(loudness, *, seed)", "a Mute"]),
        ("deaf", ["sound must take (loudness, *, seed)", "takes ()"]),
        ("nameless", ["its name must be of class str", "3"]),
        ("strange", ["its Settings must be a subclass of Struct", "dict"]),
        ("build", ["lacks the method sound", "the function build(spec)"]),
        ("Horn", ["sound must take (loudness, *, seed)", "takes (self, loudness, *, seed)"]),
    ],
)
def test_object_that_does_not_fit_its_protocol_is_refused(name: str, words: list[str]) -> None:
    with pytest.raises(DoorError) as refusal:
        HORNS.find(f"cars_of_mine.parts:{name}")
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


def test_instance_of_a_class_is_asked_for_by_its_name() -> None:
    with pytest.raises(DoorError, match=r"limit cars_of_mine.parts:horn: must be of class int, got a Horn"):
        load("cars_of_mine.parts:horn", int, "limit")


def test_what_somebody_elses_code_raises_is_told_with_its_place() -> None:
    name = "cars_of_mine.parts:broken"
    told = pytest.raises(DoorError, match=r"builder .*:broken: ZeroDivisionError: .*parts\.py, line")
    with told, BUILDERS.guard(name):
        BUILDERS.find(name)("x")
    with pytest.raises(ZeroDivisionError), BUILDERS.guard("ours"):
        raise ZeroDivisionError


@given(st.lists(st.from_regex(r"[a-z][a-z0-9_.-]{0,4}(:[a-z]{1,3})?", fullmatch=True), unique=True))
def test_names_stay_different_as_files(names: list[str]) -> None:
    files = [file_name(name) for name in names]
    assert len(set(files)) == len(names)
    assert not any("/" in file or ":" in file for file in files)
    assert [is_foreign(name) for name in names] == [":" in name for name in names]
