"""What `blackfleet` says where only the vehicle's part, or less, is installed: one line, no traceback."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from protocol.errors import MISTAKE_CODE

PREDICT = "predict"
DOCTOR = "doctor"
_OURS = frozenset({"protocol", "datasets", "evaluation", "edge_client", "cloud_server", "fleet"})
_NEEDS = {"onnxruntime": "onnxruntime", "cv2": "opencv-python-headless", "numpy": "numpy"}
"""What `predict` needs, by the name that it is imported by."""


def missing_package(error: ModuleNotFoundError) -> str:
    """The package that an import has failed for want of.

    Raises:
        ModuleNotFoundError: the very error, where it is one of ours: a bug.
    """
    name = (error.name or "").partition(".")[0]
    if not name or name in _OURS:
        raise error
    return name


def end_without_operator(arguments: Sequence[str], missing: str) -> NoReturn:
    """Help, or one line about a command that can't be run here; ends the process."""
    command = next((argument for argument in arguments if not argument.startswith("-")), None)
    if command == PREDICT:
        _end(
            f"predict needs onnxruntime, numpy and OpenCV, and {missing} is missing: pip install "
            f"'blackfleet[vehicle]' (on a Jetson, NVIDIA's builds)"
            if missing in _NEEDS
            else f"predict needs {missing} for this, and it is missing: pip install {missing}"
        )
    if command is None:
        _parser(missing).print_help()
        sys.exit(0)
    _end(
        f"{command} needs the operator's packages, and {missing} is missing: pip install "
        f"'blackfleet[operator]'; `blackfleet {DOCTOR}` says what else, and here are `blackfleet {PREDICT}` "
        f"and a vehicle, `python -m edge_client`"
    )


def _parser(missing: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="blackfleet",
        usage=f"blackfleet {PREDICT} MODEL SOURCE …",
        description=f"Only the vehicle's part of blackfleet is installed here ({missing} is missing): "
        f"`blackfleet {PREDICT}`, which runs an exported model, `blackfleet {DOCTOR}`, which says what is "
        f"missing, and `python -m edge_client`, a vehicle of a fleet. All other commands: pip install "
        f"'blackfleet[operator]'.",
    )
    return made


def _end(line: str) -> NoReturn:
    print(f"blackfleet: {line}", file=sys.stderr)
    sys.exit(MISTAKE_CODE)
