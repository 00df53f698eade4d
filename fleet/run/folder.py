"""A run's own folder: new or gone on with, held by one process, readable by its owner alone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from datasets.class_file import CLASSES_NAME
from fleet.broker import MEMORY_BUS, OWN_BROKERS
from fleet.errors import OperatorError
from fleet.export.encoders import is_onnx_file
from fleet.scenario import Scenario, load_scenario, save_scenario
from fleet.simulation.availability import is_trace
from protocol.atomic import write_bytes_atomic
from protocol.mqtt.broker_url import parse_broker_url

SCENARIO_NAME = "scenario.yaml"
LEFT_BY_COMPARISONS = frozenset({SCENARIO_NAME, "compare.json", "compare.md", "report.html", "replay.html"})
LEFT_BY_RUNS = LEFT_BY_COMPARISONS | frozenset(
    {
        *("result.json", "partition.json", CLASSES_NAME, "log.jsonl", "cloud.json"),
        *("cloud", "vehicles", "hosts", "processes", "bundles", "local_heads", "decoders"),
        *("local_model", "start"),
        *("predictions", "fleet_predictions", "latest", "overlays", "tensorboard", "run.rrd", "audit"),
        "seals",
        # of pretraining
        *("start.json", "encoder", "cloud_network.safetensors", "source_features.msgpack", "surrogate"),
    }
)
"""What runs write, and comparisons. Generated frames in `data` are none of it: they say what they are."""
_PATHS = (
    *("encoder.weights", "dataset.root", "dataset.test_split", "start", "network.weights"),
    *("simulation.profiles",),
)
"""Settings that are paths wherever the launcher was started."""
LOCK_NAME = ".lock"
_OTHERS = 0o077
"""What a umask takes from everyone but the owner."""


@contextlib.contextmanager
def readable_by_owner_alone() -> Iterator[None]:
    """What this process and those that it starts write in the body is for its owner: a run's files tell of
    frames and labels. A folder that is there keeps its own permissions."""
    before = os.umask(_OTHERS)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def held(run_folder: Path) -> Iterator[None]:
    """Keep a run folder to this process: two launchers in it would spoil each other's run.

    Raises:
        OperatorError: another process holds it.
    """
    with (run_folder / LOCK_NAME).open("w") as lock:
        try:
            # The system lets go of it however this process ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OperatorError(
                f"another launcher is at work in {run_folder}; wait for its end, or choose another folder"
            ) from error
        yield


def check_folder_name(folder: Path) -> None:
    """Refuse a folder whose name is no text: not every library that writes into it could open it.

    Raises:
        OperatorError: the name holds bytes that are no UTF-8.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise OperatorError(
            f"the name of the folder {folder} holds bytes that are no UTF-8 text; choose another one"
        ) from error


def begin_run(scenario: Scenario, run_folder: Path) -> Scenario:
    """Make the folder this run's own, with its exact configuration, which is returned.

    Raises:
        OperatorError: it is another run's, holds what another run has left, or can't be written.
    """
    check_folder_name(run_folder)
    check_new(run_folder)
    scenario = with_own_fleet(settled(scenario))
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
        write_scenario(run_folder, scenario)
    except OSError as error:
        raise OperatorError(
            f"can't write to {run_folder}: {error.strerror}; choose another folder"
        ) from error
    return scenario


def check_new(folder: Path) -> None:
    """Refuse a folder in which a run, or a part of one, would pass for the one that is to begin there.

    Raises:
        OperatorError: the message names what is there.
    """
    if (folder / SCENARIO_NAME).exists():
        raise OperatorError(f"{folder} holds a run already; add --resume, or choose another folder")
    left = (
        sorted(path.name for path in folder.iterdir() if path.name in LEFT_BY_RUNS) if folder.is_dir() else []
    )
    if left:
        raise OperatorError(
            f"{folder} holds what another run has left ({', '.join(left)}), but no {SCENARIO_NAME} to resume "
            f"it by; remove that, or choose another folder"
        )


def settled(scenario: Scenario) -> Scenario:
    """The scenario as it is kept: it means the same wherever, and on however many cores, it is read again."""
    # Thread counts are part of what makes a run repeatable: the file says how many cores it was planned for.
    return with_absolute_paths(msgspec.structs.replace(scenario, cores=scenario.core_count))


def with_absolute_paths(scenario: Scenario) -> Scenario:
    """The scenario, its relative paths seen from the current folder."""
    for key in _PATHS:
        if key == "dataset.test_split" and not scenario.dataset.test_folder:
            continue
        *sections, name = key.split(".")
        part: Any = scenario
        for section in sections:
            part = getattr(part, section)
        path = getattr(part, name)
        if path is not None:
            part = msgspec.structs.replace(part, **{name: str(Path(path).absolute())})
            scenario = msgspec.structs.replace(scenario, **{sections[0]: part}) if sections else part
    part = scenario.simulation
    if is_trace(part.availability):
        part = msgspec.structs.replace(part, availability=str(Path(part.availability).absolute()))
    encoder = msgspec.structs.replace(scenario.encoder, name=_absolute_file(scenario.encoder.name))
    encoders = {vehicle: _absolute_file(name) for vehicle, name in scenario.encoders.items()}
    return msgspec.structs.replace(scenario, encoder=encoder, encoders=encoders, simulation=part)


def _absolute_file(encoder: str) -> str:
    return str(Path(encoder).absolute()) if is_onnx_file(encoder) else encoder


def with_own_fleet(scenario: Scenario) -> Scenario:
    """The scenario with a fleet's name that no other run has, unless it has one: runs may share a broker.

    All such names are of one length, so that a run's bytes don't depend on its name.
    """
    if scenario.fleet is not None:
        return scenario
    return msgspec.structs.replace(scenario, fleet=f"fleet-{secrets.token_hex(4)}")


def kept_scenario(run_folder: Path) -> Scenario:
    """The scenario of the run in this folder.

    Raises:
        OperatorError: there is none, or it can't be read.
    """
    path = run_folder / SCENARIO_NAME
    if not path.is_file():
        raise OperatorError(f"{run_folder} holds no run to resume ({SCENARIO_NAME} is missing)")
    if any(run_folder.glob(f"*/{SCENARIO_NAME}")):
        raise OperatorError(
            f"{run_folder} holds a comparison and no run; go on with `blackfleet compare` and the same "
            f"options"
        )
    return load_scenario(path, {})


def write_scenario(folder: Path, scenario: Scenario) -> None:
    """Write `scenario.yaml`, with the broker's URL but for user and password.

    Raises:
        OSError: the folder can't be written.
    """
    kept = msgspec.structs.replace(scenario, broker=_without_secrets(scenario.broker))
    write_bytes_atomic(folder / SCENARIO_NAME, save_scenario(kept).encode())


def _without_secrets(broker: str) -> str:
    if broker in OWN_BROKERS or broker == MEMORY_BUS:
        return broker
    return parse_broker_url(broker).without_login()
