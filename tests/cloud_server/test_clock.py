"""Time is a dependency: what the cloud decides by time, it decides by the clock of its link."""

from __future__ import annotations

import ast
from pathlib import Path

CLOUD = Path(__file__).parents[2] / "cloud_server"


def test_nothing_in_the_cloud_asks_the_machine_for_the_time_or_sleeps() -> None:
    found = [
        f"{path.relative_to(CLOUD)}:{node.lineno}"
        for path in sorted(CLOUD.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("monotonic", "perf_counter", "sleep")
    ]
    assert found == []
