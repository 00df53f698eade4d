"""Options that several benchmarks have, as types for argparse."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection

from cloud_server.config import DEVICES
from fleet.cli.sweep import parse_seeds
from fleet.errors import OperatorError


def read_seeds(text: str) -> tuple[int, ...]:
    """Seeds from `0,1`.

    Raises:
        ArgumentTypeError: see `parse_seeds`.
    """
    try:
        return parse_seeds(text)
    except OperatorError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_device(parser: argparse.ArgumentParser) -> None:
    """`--device`, of the cloud's part of each run."""
    parser.add_argument(
        "--device", choices=DEVICES, default="auto", help="what the cloud computes on (default: auto)"
    )


def some_of(known: Collection[str], *, separator: str = ";") -> Callable[[str], tuple[str, ...]]:
    """A type that reads some of the known names, and has them in the order in which they are known."""

    def read(text: str) -> tuple[str, ...]:
        named = set(text.split(separator))
        if strangers := named.difference(known):
            raise argparse.ArgumentTypeError(
                f"unknown {min(strangers)!r}, expected some of: {f'{separator} '.join(known)}"
            )
        return tuple(name for name in known if name in named)

    return read
