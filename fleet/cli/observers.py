"""Who looks on while a run is launched: a page in a browser, Prometheus."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from fleet.run.controls import Controls
from fleet.scenario import Scenario

OBSERVING = "Looking on"
"""The group of their options in the help."""


@contextlib.contextmanager
def observed(
    scenario: Scenario, run_folder: Path, *, watch_port: int | None, metrics: str | None, console: Console
) -> Iterator[Controls | None]:
    """Serve the page and the metrics of a run in the body; None stands for neither.

    Yields what the page's buttons ask by. After a body that ended well, whoever fetches metrics at intervals
    gets the last ones.

    Raises:
        SettingError, OSError: one can't be served.
    """
    with contextlib.ExitStack() as stack:
        controls, server = None, None
        if metrics is not None:
            from fleet.show.metrics import LaunchMetrics
            from protocol.metrics import MetricsServer

            labels = {
                "run": run_folder.name,
                "algorithm": scenario.algorithm,
                "dataset": scenario.dataset.name,
                "seed": str(scenario.seed),
            }
            server = MetricsServer(metrics, LaunchMetrics(run_folder, labels).families)
            stack.enter_context(server)
            console.print(f"metrics at {server.address}", soft_wrap=True)
        if watch_port is not None:
            from fleet.watch.server import WatchServer

            controls = Controls()
            page = stack.enter_context(WatchServer(run_folder, port=watch_port, controls=controls))
            console.print(f"watch at {page.address}", soft_wrap=True)
        yield controls
        if server is not None:
            server.linger()
