"""`blackfleet watch`: shows a run until somebody stops it."""

from __future__ import annotations

import threading
from pathlib import Path

from rich.console import Console

from cloud_server.storage.recorders import LOG_NAME
from fleet.errors import OperatorError
from fleet.run.folder import SCENARIO_NAME
from fleet.watch.guard import is_loopback
from fleet.watch.server import WatchServer


def watch_run(run_folder: Path, *, host: str, port: int, console: Console) -> None:
    """Print the page's address and serve it for ever.

    Raises:
        OperatorError: the folder holds no run, or the address can't be had.
        Interrupted: somebody wants it to stop.
    """
    if not any((run_folder / name).is_file() for name in (LOG_NAME, SCENARIO_NAME)):
        raise OperatorError(f"{run_folder} holds no run: neither {LOG_NAME} nor {SCENARIO_NAME} is there")
    with WatchServer(run_folder, host=host, port=port) as server:
        if not is_loopback(host):
            console.print(
                "other hosts can reach this page; whoever has its address sees the run's frames, and it "
                "crosses the network in the clear (an SSH tunnel to the loopback would not)",
                style="yellow",
                soft_wrap=True,
            )
        console.print(f"watch at {server.address}", soft_wrap=True)
        threading.Event().wait()
