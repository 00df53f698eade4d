"""The official Cityscapes tool for tests, in its own environment; without one, what needs it is skipped."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from evaluation.errors import EvaluationError
from evaluation.official_python import find_official_python, official_command


@cache
def _found() -> Path | str:
    try:
        return find_official_python()
    except EvaluationError as error:
        return str(error)


def official_python() -> Path:
    """Its interpreter."""
    found = _found()
    if isinstance(found, str):
        pytest.skip(found)
    return found


def run_official(code: str, *arguments: str) -> Any:
    """What `code` prints as JSON, run in the tool's environment with these `sys.argv[1:]`."""
    done = subprocess.run(
        [*official_command(official_python()), "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
