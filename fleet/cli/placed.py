"""`--ray` of a launch: the cluster that its processes go to, if any."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console

from fleet.errors import OperatorError

GROUP = "Several machines"

RAY = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Put vehicle hosts on the nodes of this Ray cluster: HOST:PORT of its head, or auto: the one "
        "that this machine is a node of.",
        rich_help_panel=GROUP,
    ),
]
RAY_RESOURCES = Annotated[
    str | None,
    typer.Option(
        metavar="NAME=AMOUNT",
        help="What each vehicle host reserves on its node, such as CPU=2,orin=1; default: CPU=1, shared "
        "where no node has room.",
        rich_help_panel=GROUP,
    ),
]
RAY_CLOUD = Annotated[
    str | None,
    typer.Option(
        metavar="NAME=AMOUNT",
        help="Put the cloud on a node, too, which has this, such as CPU=4,GPU=1 or node:10.0.0.5=0.1.",
        rich_help_panel=GROUP,
    ),
]


@contextlib.contextmanager
def placed(
    ray: str | None, resources: str | None, cloud: str | None, console: Console
) -> Iterator[Any]:  # fleet.cluster.machines.RayMachines | None
    """The cluster in the body; None where none was asked for.

    Raises:
        Mistake: see `fleet.cluster.machines.RayMachines`; or an option plays no part.
    """
    if ray is None:
        for option, value in (("--ray-resources", resources), ("--ray-cloud", cloud)):
            if value is not None:
                raise OperatorError(f"{option} needs --ray, the cluster that it is about")
        yield None
        return
    from fleet.cluster.machines import RayMachines

    with RayMachines(ray, resources=resources, cloud=cloud) as machines:
        console.print(machines.remark, highlight=False, soft_wrap=True)
        yield machines
