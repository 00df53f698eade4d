"""The command `blackfleet doctor`, which works where the operator's packages are missing."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from fleet.doctor.brokers import check_broker, check_own_broker, check_port
from fleet.doctor.certificates import check_certificate_file
from fleet.doctor.computing import check_cuda, check_onnx_runtime
from fleet.doctor.finding import Finding, as_text
from fleet.doctor.machine import check_cameras, check_cores_and_memory, check_disk
from fleet.doctor.packages import (
    PARTS,
    PROJECT,
    check_packages,
    check_python,
    install,
    read_requirements,
)
from protocol.errors import MISTAKE_CODE, SettingError

_WRONG_CODE = 1
_READY = {
    "operator": "ready: blackfleet launch runs a fleet here, blackfleet init writes a scenario of your own",
    "cloud": "ready: python -m cloud_server runs here",
    "vehicle": "ready: python -m edge_client runs here",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="blackfleet doctor",
        description="Check this machine: Python, packages and their versions, a broker, what ONNX Runtime "
        "and torch compute on, memory, disk, ports, cameras, dates of certificates; and say what to do. "
        "Exit code 0: all that is needed is here; 1: something is not.",
    )
    made.add_argument(
        "--part",
        choices=PARTS,
        default=PARTS[0],
        help="What this machine is to be; an operator launches whole fleets (default: %(default)s).",
    )
    made.add_argument(
        "--broker", metavar="URL", help="Also reach this broker, in place of one that is started here."
    )
    made.add_argument(
        "--port",
        type=_port,
        action="append",
        default=[],
        help="Also see whether this port is free on the loopback interface; repeat for more.",
    )
    made.add_argument(
        "--certificate",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="Also look at the dates of this PEM file; repeat for more.",
    )
    made.add_argument(
        "--run-dir", type=Path, default=Path(), help="Folder that runs are to be written to (default: here)."
    )
    made.add_argument("--json", action="store_true", help="One JSON object, for programs.")
    return made


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise argparse.ArgumentTypeError(f"must be from 1 to 65535, got {text!r}")
    return int(text)


def main(arguments: Sequence[str]) -> int:
    """Print what is found; 1 where something that is needed is missing, 2 for a wrong option, else 0."""
    options = parser().parse_args(arguments)
    before = logging.root.manager.disable
    # What checks find out they say themselves; libraries' remarks about it would stand between.
    logging.disable(logging.WARNING)
    try:
        findings = list(_findings(options))
    except SettingError as error:
        print(f"blackfleet: {error}", file=sys.stderr)
        return MISTAKE_CODE
    finally:
        logging.disable(before)
    faults = sum(finding.state == "wrong" for finding in findings)
    if options.json:
        print(json.dumps({"ok": not faults, "findings": [dataclasses.asdict(each) for each in findings]}))
    else:
        print(as_text(findings))
        things = "1 thing" if faults == 1 else f"{faults} things"
        print(f"\n{things} to mend, see → above" if faults else f"\n{_READY[options.part]}")
    sys.stdout.flush()
    return _WRONG_CODE if faults else 0


def _findings(options: argparse.Namespace) -> Iterator[Finding]:
    """Each check, in the order in which a person would mend."""
    part = options.part
    asked = read_requirements()
    if asked is None:
        yield Finding(
            about="packages",
            state="wrong",
            found=f"{PROJECT} is not installed, so nobody says what it needs",
            advice=install(part),
        )
    else:
        yield check_python(asked)
        yield from check_packages(asked, part)
    yield check_cores_and_memory()
    yield check_disk(options.run_dir)
    if options.broker:
        yield from check_broker(options.broker)
    elif part == "operator":
        yield from check_own_broker()
    for port in options.port:
        yield check_port(port)
    for file in options.certificate:
        yield from check_certificate_file(file)
    if part != "cloud":
        yield from check_onnx_runtime()
        yield from check_cameras()
    if part != "vehicle":
        yield from check_cuda()
