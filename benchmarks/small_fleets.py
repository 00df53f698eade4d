"""Fleets that run in seconds, for benchmarks of what disturbs them: tiny frames, processes that start fast.

A process of such a fleet is forked from one that has loaded everything: it starts in a tenth of a second.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from rich.console import Console

from fleet import broker
from fleet.broker import MEMORY_BUS
from fleet.run.processes import die_with_parent
from fleet.scenario import load_scenario

_PRELOADED = ("torch", "cloud_server.command", "cloud_server.run.service", "edge_client.command")
_SHARED = ("bundles", "data", "local_heads", "local_model", "surrogate_heads", "classes.yaml", "start")
SMALL: dict[str, Any] = {
    "vehicles": 2,
    "vehicles_per_host": 1,
    "rounds": 2,
    "image_size": "64x48",
    "cores": 1,
    "broker": MEMORY_BUS,
    "encoder.name": "stride8-c4",
    "encoder.mode": "rebuild",
    "dataset.frames_per_sequence": 7,
    "evaluation.overlays": 0,
    "public_events": False,
    "first_order.epochs": 2,
    "first_order.batch_size": 4,
    "zeroth_order.batches": 2,
    "zeroth_order.batch_size": 3,
    "spsa.queries": 1,
    "local_loss.warm_up_epochs": 2,
    "local_loss.epochs": 2,
    "local_head.width": 8,
    "local_head.depth": 1,
    "patience.join_s": 90.0,
    "patience.retry_s": 0.3,
    "patience.give_up_s": 90.0,
    "patience.heartbeat_s": 0.5,
    "patience.on_failure": "stop",
}
"""By scenario key."""


@dataclass(frozen=True, kw_only=True)
class Life:
    """One process from its start to its end."""

    module: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    log: Path


def forked() -> ForkServerContext:
    """Processes forked from one that has loaded what they need, each with one thread to compute."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.storm_run", *_PRELOADED])
    return context


def live(life: Life, *prepare: Callable[[], None]) -> None:
    """Be a process of the fleet, after what there is to `prepare`; called in a forked process."""
    die_with_parent()
    os.environ.update(life.environment)
    output = os.open(life.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for step in prepare:
        step()
    sys.exit(importlib.import_module(life.module).main([*life.arguments]))


def start_broker(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """A broker that answers; it keeps nothing when it ends."""
    with (folder / "broker.log").open("ab") as output:
        process = subprocess.Popen(
            broker.broker_command(broker.choose_kind("auto"), port, folder / "broker"),
            stdout=output,
            stderr=output,
            preexec_fn=die_with_parent,
        )
    broker.wait_ready(broker.HOST, port, 60)
    return process


def undisturbed(folder: Path, settings: Mapping[str, Any], context: ForkServerContext) -> Path:
    """The folder of the run of `SMALL` with these settings over it, made now if need be.

    Raises:
        SystemExit: it failed; the message says where to look.
    """
    if not (folder / "result.json").exists():
        process = context.Process(target=_launch, args=(folder, {**SMALL, **settings}))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"the undisturbed run failed: see {folder.with_suffix('.log')}")
    return folder


def _launch(folder: Path, settings: Mapping[str, Any]) -> None:
    from fleet.run.launch import launch

    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("a") as log:
        resume = (folder / "scenario.yaml").exists()
        launch(load_scenario(None, settings), folder, resume=resume, console=Console(file=log, width=120))


def copy_settings(template: Path, folder: Path) -> None:
    """What a launcher writes before it starts processes, for another run, in `folder`."""
    (folder / "hosts").mkdir(parents=True)
    (folder / "processes").mkdir()
    for name in _SHARED:
        if (template / name).exists():
            (folder / name).symlink_to(template / name)
    for path in (template / "cloud.json", *(template / "hosts").glob("*.json")):
        text = path.read_text().replace(str(template), str(folder))
        (folder / path.relative_to(template)).write_text(text)
