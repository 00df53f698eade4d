"""`blackfleet watch`: a run, or a fleet at its broker, on a page in the browser."""

from __future__ import annotations

from typing import Annotated

import typer

from fleet.cli.interrupts import stopping_line
from fleet.show.screen import screen


def watch(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN | BROKER_URL",
            show_default=False,
            help="The folder of a run, at work or ended; or a fleet at its broker, mqtt://HOST:PORT/FLEET, "
            "with certificates and options as in --broker of cloud and vehicles.",
        ),
    ] = None,
    fleet: Annotated[
        str | None,
        typer.Option(
            help="Name of the fleet, where the broker's URL does not end with it. Without a URL that of "
            "$BLACKFLEET_BROKER is taken, which no list of processes shows."
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="Of the page; 0 = a free one.")] = 0,
    host: Annotated[
        str, typer.Option(help="Where to listen; of other hosts only those with the printed token may look.")
    ] = "127.0.0.1",
) -> None:
    """Show a run in your browser while it is at work, or as a replay when it has ended.

    The page comes from this machine alone and loads nothing else; Ctrl-C ends it, and not the run.

    Of a fleet at a broker an observer hears who is there and what the cloud tells; it says nothing, and can
    be given a user of its own that may not.
    """
    from fleet.watch.command import watch as watching

    with stopping_line():
        watching(target, fleet, host=host, port=port, console=screen())
