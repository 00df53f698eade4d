"""Nothing in the tree unpickles: what is read is MessagePack, JSON, YAML of plain values, safetensors."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("protocol", "datasets", "evaluation", "edge_client", "cloud_server", "fleet", "benchmarks")
FORBIDDEN = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
SUSPECT = re.compile(rf"{'|'.join(FORBIDDEN)}|load\(")
"""What is looked at closely: to parse everything would take seconds."""
LOADERS = {
    ("torch", "load"): ("weights_only", True),
    ("np", "load"): ("allow_pickle", False),
    ("numpy", "load"): ("allow_pickle", False),
}
"""What unpickles unless it is told not to, with what it must be told."""


def _unpickles(tree: ast.AST) -> Iterator[str]:
    bases = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        yield from (name for name in names if name.split(".")[0] in FORBIDDEN)
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
        called = (owner, node.func.attr)
        if called in LOADERS:
            said = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
            keyword, wanted = LOADERS[called]
            if said.get(keyword) is not wanted:
                yield f"{owner}.{node.func.attr} without {keyword}={wanted}"
        if called[1] in ("unsafe_load", "full_load") or (
            called == ("yaml", "load") and not (bases & {"SafeLoader", "CSafeLoader"})
        ):
            yield f"{owner}.{node.func.attr}"


def test_nothing_in_the_tree_unpickles() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {what}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if SUSPECT.search(text := path.read_text())
        for what in _unpickles(ast.parse(text))
    }
    assert found == set()


def test_what_unpickles_would_be_found() -> None:
    for line in (
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "yaml.unsafe_load(text)",
    ):
        assert list(_unpickles(ast.parse(line))), line
    assert not list(
        _unpickles(ast.parse("torch.load(p, weights_only=True)\nyaml.load(t, Loader=yaml.SafeLoader)"))
    )
