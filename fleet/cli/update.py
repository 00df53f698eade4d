"""`blackfleet update`: sign what vehicles are to run, let a run's cloud offer it, see what became of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fleet.errors import OperatorError

update_app = typer.Typer(
    no_args_is_help=True,
    help="Give vehicles another bundle, head or settings, signed, tried, and taken back if they don't work.",
)


@update_app.command()
def sign(
    folder: Annotated[
        Path, typer.Argument(help="A bundle, a local head, or a folder that holds settings.json.")
    ],
    *,
    key: Annotated[Path, typer.Option(help="The operator's key: update.key of the authority's folder.")],
    fleet: Annotated[str, typer.Option(help="Whose vehicles may take it.")],
    version: Annotated[
        int, typer.Option(help="Higher than that of all updates of this kind before: vehicles go never back.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("update.bfu"),
    name: Annotated[str | None, typer.Option(help="What people call it; default: the folder's name.")] = None,
    vehicles: Annotated[
        str | None, typer.Option(help="Only for these, with commas between; default: all.")
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            help="learnt: vehicles go on with what they have learnt, where parameters have the same names "
            "and shapes; own: they start from the update's own weights."
        ),
    ] = "learnt",
) -> None:
    """Make an update of a folder, and sign it.

    blackfleet update sign bundles/better --key ids/update.key --fleet demo
    --version 2
    """
    from fleet.provision.update import Wishes, sign_folder

    if weights not in ("learnt", "own"):
        raise OperatorError(f"--weights must be learnt or own, got {weights!r}")
    wishes = Wishes(
        key=key,
        fleet=fleet,
        version=version,
        name=name,
        vehicles=[each.strip() for each in vehicles.split(",")] if vehicles else (),
        weights=weights,  # type: ignore[arg-type]  # checked above
    )
    sign_folder(folder, wishes, output, print)


@update_app.command()
def send(
    file: Annotated[Path, typer.Argument(help="An update that `sign` has written.")],
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The cloud's run folder.")],
) -> None:
    """Let the cloud of a run offer an update to its vehicles, now or when it runs again."""
    from cloud_server.run.updates import FOLDER_NAME
    from fleet.provision.update import put_into_run

    put_into_run(file, run_folder, FOLDER_NAME, print)


@update_app.command()
def status(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The cloud's run folder.")],
) -> None:
    """Say what has become of a run's updates, vehicle by vehicle."""
    from fleet.cli.update_status import lines

    for line in lines(run_folder):
        print(line)
