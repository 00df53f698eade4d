"""The table of algorithms: documented row by row, and asked wherever one is treated unlike another."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloud_server.algorithms.table import (
    ALGORITHMS,
    FLEET_ALGORITHMS,
    algorithm_row,
    build_algorithm,
    check_fleet_algorithm,
)
from protocol.doors import DoorError
from protocol.errors import SettingError

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "cloud_server" / "algorithms" / "table.py"
NAMES = set(ALGORITHMS) - {"split", "frozen"}
"""Those that mean nothing else in the code."""


def _told_apart(path: Path) -> Iterator[int]:
    """Lines that compare something with an algorithm's name, or look it up in a set or dictionary of them."""
    for node in ast.walk(ast.parse(path.read_text())):
        inner: list[ast.expr | None] = []
        if isinstance(node, ast.Compare):
            inner = [node.left, *node.comparators]
        elif isinstance(node, ast.Set):
            inner = [*node.elts]
        elif isinstance(node, ast.Dict):
            inner = [*node.keys]
        if any(isinstance(part, ast.Constant) and part.value in NAMES for part in inner):
            yield node.lineno


@pytest.mark.parametrize("package", ["protocol", "evaluation", "edge_client", "cloud_server", "fleet"])
def test_nobody_but_the_table_tells_algorithms_apart_by_name(package: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / package).rglob("*.py"))
        if path != TABLE
        for line in _told_apart(path)
    ]
    assert found == []


def test_every_row_is_documented() -> None:
    text = (ROOT / "docs" / "algorithms.md").read_text()
    head = text[: text.index("## A run")]
    assert sorted(re.findall(r"^\| `([a-z][a-z0-9-]+)` \|", head, flags=re.M)) == sorted(ALGORITHMS)


def test_colours_differ_and_are_colours() -> None:
    colours = [row.colour for row in ALGORITHMS.values()]
    assert len(set(colours)) == len(colours)
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours)


def test_only_centralized_needs_no_fleet() -> None:
    assert set(ALGORITHMS) - set(FLEET_ALGORITHMS) == {"centralized"}


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(SettingError, match=r"unknown algorithm 'fedavgg', expected one of: blackfleet, .*"):
        algorithm_row("fedavgg")


FOREIGN = """
from cloud_server.algorithms.row import AlgorithmRow, no_handlers

def row(build):
    return AlgorithmRow(name="x", title="x", build=build, handlers=no_handlers, colour="#000000")

half = row(lambda context: object())
homeless = row(None)
deaf = row(lambda: object())
broken = row(lambda context: context.nothing)
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("row", ["must be of class AlgorithmRow", "the function row(build)"]),
        ("homeless", ["its build must be callable with (context)", "NoneType"]),
        ("deaf", ["its build must take (context)", "takes ()"]),
        ("three", ["has no 'three'"]),
    ],
)
def test_row_of_somebody_else_that_does_not_fit_is_refused(
    foreign: Callable[[str, str], str], name: str, words: list[str]
) -> None:
    with pytest.raises(DoorError) as refusal:
        check_fleet_algorithm(f"{foreign('foreign_rows', FOREIGN)}:{name}")
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


def test_algorithm_of_somebody_else_that_is_none_is_refused(foreign: Callable[[str, str], str]) -> None:
    module = foreign("foreign_rows", FOREIGN)
    with pytest.raises(DoorError, match=r"what it builds lacks the method .*, got an object"):
        build_algorithm(f"{module}:half", None)  # type: ignore[arg-type]
    with pytest.raises(DoorError, match=r"broken: AttributeError: .*nothing.*foreign_rows\.py, line"):
        build_algorithm(f"{module}:broken", None)  # type: ignore[arg-type]
    with pytest.raises(DoorError, match="unknown algorithm 'centralized', expected one of: blackfleet"):
        check_fleet_algorithm("centralized")
