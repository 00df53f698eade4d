"""Finds a Python that can run the official Cityscapes evaluation: it has an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from evaluation.errors import EvaluationError

MODULE = "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"
VARIABLE = "BLACKFLEET_OFFICIAL_PYTHON"
"""Environment variable that names the Python."""
FOLDER = ".official"
"""What `make official` makes, in a checkout."""

# numpy 2.4 has no in1d, which the evaluation calls only at its very end.
_PROBE = f"import numpy; numpy.in1d; import {MODULE}"
_TIMEOUT_S = 60.0


def official_command(python: Path) -> list[str]:
    """How this Python runs something of the tool's: on its own, whatever our PYTHONPATH says."""
    return [str(python), "-I", "-W", "ignore::DeprecationWarning"]


def find_official_python(named: Path | None = None) -> Path:
    """The interpreter that runs the official evaluation.

    `named`, or else what the environment variable names, is the one or none is; without either it is looked
    for in `.official`, below the current folder or in the checkout, and last in the Python that runs this.

    Raises:
        EvaluationError: there is none, or the one that was named can't run it.
    """
    chosen = named or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if chosen is not None:
        fault = _fault(chosen)
        if fault is not None:
            raise EvaluationError(
                f"{chosen} can't run the official evaluation: {fault}; name the Python of an environment "
                f"with the packages of official.txt"
            )
        return chosen
    for folder in (Path.cwd(), Path(__file__).parents[1]):
        python = folder / FOLDER / "bin" / "python"
        if python.exists() and _fault(python) is None:
            return python
    python = Path(sys.executable)
    if _fault(python) is None:
        return python
    raise EvaluationError(
        f"no environment with the official evaluation (cityscapesscripts): make one with `make official` in "
        f"a checkout, or name its Python with --official-python or in {VARIABLE}"
    )


def _fault(python: Path) -> str | None:
    """Why it can't run the tool, in the last words that it said; None: it can."""
    try:
        done = subprocess.run(
            [*official_command(python), "-c", _PROBE],
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
    except OSError as error:
        return error.strerror or str(error)
    except subprocess.TimeoutExpired:
        return f"it said nothing within {_TIMEOUT_S:g} s"
    lines = done.stderr.split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it failed") if done.returncode else None
