"""The options of `blackfleet provision`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fleet.cli.interrupts import stopping_line

_REPLACING = "Later"
_BROKER = "The broker"


def provision(
    folder: Annotated[
        Path, typer.Argument(help="The authority: a new folder, or one that this command has made.")
    ],
    fleet: Annotated[str | None, typer.Option(help="Name of the fleet; it is part of every name.")] = None,
    vehicles: Annotated[
        str | None,
        typer.Option(
            help="Who is to have a certificate: names with commas between, or a number (3: car-01 to car-03)."
        ),
    ] = None,
    observers: Annotated[
        str | None,
        typer.Option(help="More who only look on, at the same time; laptop is called observer-laptop."),
    ] = None,
    days: Annotated[int, typer.Option(help="How long new certificates are valid.")] = 365,
    sign: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A request (CSR) by a vehicle whose key stays on it; repeat for more.",
        ),
    ] = None,
    broker_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name or address by which clients reach the broker; repeat for more. Default: localhost.",
            rich_help_panel=_BROKER,
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Where it listens; default: 8883.", rich_help_panel=_BROKER)
    ] = None,
    broker_folder: Annotated[
        str | None,
        typer.Option(
            help="Where its files will lie on its machine; default: where they are written.",
            rich_help_panel=_BROKER,
        ),
    ] = None,
    renew: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="New keys and certificates for these (cloud, operator, observer, broker, too).",
            rich_help_panel=_REPLACING,
        ),
    ] = None,
    revoke: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Take back all certificates of these. Named in --vehicles as well: replace them.",
            rich_help_panel=_REPLACING,
        ),
    ] = None,
    another_fleet: Annotated[
        bool,
        typer.Option(
            "--another-fleet", help="Let --fleet be a new one on the same broker.", rich_help_panel=_REPLACING
        ),
    ] = False,
) -> None:
    """Give every client of a broker a certificate, and the broker what it lets each do.

    blackfleet provision identities --fleet demo --vehicles 3

    makes a private authority, keys and certificates for broker, cloud,
    operator, observer and vehicles, and identities/broker: mosquitto's
    configuration, access list and list of revoked certificates.

    Run it again with more --vehicles to add some; nothing that is there is
    replaced unless --renew or --revoke names it. With the folder alone it
    says who has what, and until when.

    A key that is not to leave its car is made there, and signed here:

    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes
    -subj /CN=demo.car-04 -keyout car-04.key -out car-04.csr

    blackfleet provision identities --sign car-04.csr

    Programs find their three files by the broker's URL:
    mqtts://HOST?identity=identities/demo
    """
    from fleet.provision.command import Wishes
    from fleet.provision.command import provision as provide

    wishes = Wishes(
        fleet=fleet,
        vehicles=vehicles,
        observers=observers,
        hosts=broker_host or (),
        port=port,
        broker_folder=broker_folder,
        days=days,
        sign=sign or (),
        renew=renew,
        revoke=revoke,
        another_fleet=another_fleet,
    )
    with stopping_line("go on with the same command"):
        provide(folder, wishes, print)
