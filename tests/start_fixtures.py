"""Pretrained starts for tests, and fleets that begin from them, in one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from fleet_fixtures import World
from rich.console import Console

from cloud_server.config import ZerothOrderConfig
from cloud_server.run.persistence import RunState
from cloud_server.schedule import Stage
from cloud_server.storage.checkpoint import load_checkpoint
from fleet.errors import OperatorError
from fleet.run.launch import launch
from fleet.scenario import DatasetPart, EncoderPart, Scenario
from fleet.start import NETWORK_NAME, Start
from protocol.plans.coding import Coding
from protocol.plans.first_order import FirstOrder
from protocol.plans.local_loss import LocalLossPlan
from protocol.plans.spsa import SpsaPlan
from protocol.plans.white_box import WhiteBoxPlan

SOURCE, TARGET = "seq0", "seq1"
"""Cities of the tiny world."""
QUIET = Console(quiet=True)


def source_scenario_of(world: World) -> Scenario:
    """Pretraining on one of the two cities."""
    return Scenario(
        algorithm="blackfed-v1",
        vehicles=1,
        rounds=2,
        image_size="64x48",
        coding=Coding(bits=32),
        cores=1,
        broker="memory",
        encoder=EncoderPart(name="stride8-c4", mode="rebuild"),
        dataset=DatasetPart(name="camvid", root=str(world.data_root), cities=(SOURCE,)),
        first_order=FirstOrder(epochs=5, batch_size=4, rate=1e-2),
        white_box=WhiteBoxPlan(rate=5e-3),
    )


def target_scenario_of(world: World, start: Start) -> Scenario:
    """A short run in fog in the other city that begins from the start."""
    return changed(
        source_scenario_of(world),
        start=str(start.folder),
        rounds=1,
        conditions={"car-01": "fog:4"},
        dataset=DatasetPart(name="camvid", root=str(world.data_root), cities=(TARGET,)),
        first_order=FirstOrder(epochs=2, batch_size=4),
        zeroth_order=ZerothOrderConfig(batches=2, batch_size=3),
        spsa=SpsaPlan(queries=1, rate=1e-3),
        local_loss=LocalLossPlan(warm_up_epochs=1, epochs=1),
    )


def run(scenario: Scenario, folder: Path, *, resume: bool = False) -> dict[str, Any]:
    """Launch; returns the result."""
    return launch(scenario, folder, resume=resume, console=QUIET)


def changed(scenario: Scenario, **changes: Any) -> Scenario:
    return msgspec.structs.replace(scenario, **changes)


def changed_network(scenario: Scenario, **changes: Any) -> Scenario:
    return changed(scenario, network=msgspec.structs.replace(scenario.network, **changes))


class Killed(OperatorError):
    """What a run ends with that a test has stopped."""


@contextmanager
def killed_after(commits: int) -> Iterator[None]:
    """Whatever runs in the body ends as soon as it has committed so many stages."""
    commit = RunState.commit

    def commit_and_stop(self: RunState, stage: Stage, *arguments: Any) -> None:
        commit(self, stage, *arguments)
        if stage.number + 1 == commits:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunState, "commit", commit_and_stop)
        yield


def learnt(folder: Path) -> dict[str, bytes]:
    """All that the first vehicle and the cloud have learnt in a run."""
    tensors, _ = load_checkpoint(folder / "cloud" / "checkpoints")
    state = max((folder / "vehicles" / "car-01").glob("*.state"))
    return {"vehicle": state.read_bytes()} | {
        name: value.numpy().tobytes() for name, value in tensors.items()
    }


def assert_same_start(one: Start, other: Start) -> None:
    """The order of the meta data in a file of weights is not fixed: its tensors are compared."""
    specs = [
        msgspec.structs.replace(
            made.spec,
            sha256={name: digest for name, digest in made.spec.sha256.items() if name != NETWORK_NAME},
        )
        for made in (one, other)
    ]
    assert specs[0] == specs[1]
    weights, others = one.network_weights(), other.network_weights()
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
