"""The exception tree, as it is drawn and as it is."""

from __future__ import annotations

import importlib
import pkgutil
import re

import protocol.errors
from protocol.errors import BlackfleetError

PACKAGES = ("protocol", "datasets", "evaluation", "edge_client", "cloud_server", "fleet")
DRAWN = re.compile(r"^((?:│   |    |├── |└── )*)([A-Z]\w+)", re.MULTILINE)


def test_tree_drawn_is_the_tree() -> None:
    for package in PACKAGES:
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    assert protocol.errors.__doc__ is not None
    path: list[str] = []
    drawn = set()
    for indent, name in DRAWN.findall(protocol.errors.__doc__.split("\n\n")[1]):
        path = [*path[: len(indent) // 4], name]
        drawn.add(tuple(path))
    assert drawn == _paths(BlackfleetError, ())


def _paths(error: type, above: tuple[str, ...]) -> set[tuple[str, ...]]:
    own = (*above, error.__name__)
    children = [child for child in error.__subclasses__() if child.__module__.split(".")[0] in PACKAGES]
    return {own}.union(*(_paths(child, own) for child in children))
