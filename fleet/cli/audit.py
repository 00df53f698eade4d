"""The options of `blackfleet audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fleet.cli.interrupts import stopping_line
from fleet.show.screen import screen


def audit(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that has ended.")],
    vehicle: Annotated[
        str | None,
        typer.Option(help="Whose frames are attacked; default: the best on its own test frames."),
    ] = None,
    attacks: Annotated[
        str | None, typer.Option(help="Some of the attacks, comma-separated; default: all.")
    ] = None,
    frames: Annotated[int, typer.Option(help="Test frames that are attacked, evenly spaced.")] = 12,
    shadow_frames: Annotated[
        int, typer.Option(help="Most frames of the other vehicles that attackers have.")
    ] = 120,
    steps: Annotated[int, typer.Option(help="Steps of each attack that learns or searches.")] = 300,
    minutes: Annotated[
        float | None,
        typer.Option(help="Begin no attack later than this; the same command goes on with the others."),
    ] = None,
) -> None:
    """Attack what crossed in a run, and say what of its frames an observer gets back.

    Each attack is kept in RUN/audit when it is done, and shown in the run's report.
    """
    from fleet.audit.command import Settings
    from fleet.audit.command import audit as attack

    settings = Settings(
        vehicle=vehicle,
        attacks=tuple(attacks.split(",")) if attacks else (),
        frames=frames,
        shadow_frames=shadow_frames,
        steps=steps,
        minutes=minutes,
    )
    with stopping_line("go on with the same command"):
        attack(run_folder, settings, screen())
