"""The options of `python -m edge_client` that are about where frames come from."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

from edge_client.errors import VehicleError
from edge_client.source.settings import FLIPS, SNAPSHOTS, SourceConfig
from edge_client.source.uri import EXPECTED
from protocol.errors import SettingError

SOURCE_VARIABLE = "BLACKFLEET_SOURCE"
"""The environment variable that names the source where no option does."""

_FIELDS = {
    "source_size": "size",
    "source_rate": "rate_hz",
    "source_flip": "flip",
    "source_loop": "loop",
    "keep_every": "every_s",
    "keep_changed": "changed",
    "keep_unsure": "unsure",
    "recording": "recording",
    "recording_mb": "quota_mb",
    "frames": "frames",
    "snapshot": "snapshot",
    "grab_timeout": "grab_timeout_s",
    "serve": "serve",
    "serve_to": "serve_to",
}
"""Each option's setting."""


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Declare them; those that are not given are None, so that whoever gives one without a source is told."""
    group = parser.add_argument_group(
        "frames from a camera, instead of --dataset and --data-root",
        "A car records while it learns. A run works on a snapshot that is fixed at its start, so that a "
        "restart finds the same frames.",
    )
    group.add_argument(
        "--source",
        metavar="URI",
        help=f"{EXPECTED}; default: ${SOURCE_VARIABLE}, for streams with a password",
    )
    group.add_argument(
        "--source-size", metavar="WIDTHxHEIGHT", help="asked of a camera; other frames become as large"
    )
    group.add_argument(
        "--source-rate",
        metavar="HZ",
        type=float,
        help="frames a second, asked of a camera; a recorded drive is played at this pace",
    )
    group.add_argument("--source-flip", choices=FLIPS, help="what frames need to stand upright")
    group.add_argument(
        "--source-loop", action="store_true", default=None, help="a recorded drive begins again at its end"
    )
    group.add_argument(
        "--keep-every", metavar="SECONDS", type=float, help="least time between two frames kept (default 1)"
    )
    group.add_argument(
        "--keep-changed",
        metavar="SHARE",
        type=float,
        help="least change since the last frame kept, 0 to 1 (default 0.01: not while the car stands)",
    )
    group.add_argument(
        "--keep-unsure",
        metavar="SHARE",
        type=float,
        help="with --serve: of these frames only the share of which the model is least sure, 0 to 1",
    )
    group.add_argument(
        "--recording", metavar="DIR", help="folder of the frames kept; default: recording in --state"
    )
    group.add_argument(
        "--recording-mb", metavar="MB", type=float, help="the oldest go beyond this size (default 2000)"
    )
    group.add_argument(
        "--frames",
        metavar="N",
        type=int,
        help="a run waits for as many, and works on the newest (default 100)",
    )
    group.add_argument(
        "--snapshot",
        choices=SNAPSHOTS,
        help="auto: the frames of the run that isn't over, else the newest (default); keep: those of the "
        "last run; new: the newest",
    )
    group.add_argument(
        "--grab-timeout",
        metavar="SECONDS",
        type=float,
        help="a camera without a frame for as long is opened anew (default 5)",
    )
    group.add_argument(
        "--serve",
        metavar="MODEL|cloud",
        help="make class maps of what the camera sees now: by a file of `blackfleet export`, until stopped, "
        "or by the cloud's network, until it ends; learning takes what is left of the cores",
    )
    group.add_argument(
        "--serve-to", metavar="DIR", help="folder of the newest class map; default: serving in --state"
    )


def source_config(options: argparse.Namespace) -> SourceConfig | None:
    """The source that the options describe; None: they name none.

    Raises:
        VehicleError: options of a source without one, or of a data set beside one.
        SettingError: one is out of its range.
    """
    given = {name: getattr(options, name) for name in _FIELDS if getattr(options, name) is not None}
    of_data_set = [name for name in ("data_root", "dataset") if getattr(options, name) is not None]
    uri = options.source or (None if of_data_set else os.environ.get(SOURCE_VARIABLE))
    if uri is None:
        if given:
            raise VehicleError(f"{_option(next(iter(given)))} is about a camera: give --source, too")
        return None
    if of_data_set:
        raise VehicleError(
            f"--source and {_option(of_data_set[0])} exclude each other: give one of them (a folder of "
            f"pictures is --source file:///FOLDER; its classes are those of --label-space)"
        )
    settings: dict[str, Any] = {_FIELDS[name]: value for name, value in given.items()}
    if "size" in settings:
        settings["size"] = _size(settings["size"])
    state = Path(options.state or ".")
    settings.setdefault("recording", str(state / "recording"))
    if "serve" in settings:
        settings.setdefault("serve_to", str(state / "serving"))
    return SourceConfig(uri=uri, **settings)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if match is None:
        raise SettingError(f"--source-size must be WIDTHxHEIGHT, for instance 1280x720, got {text!r}")
    return int(match[1]), int(match[2])


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
