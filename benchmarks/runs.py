"""Runs of a benchmark: several at once in worker processes, kept on disk, none done twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from rich.console import Console

from cloud_server.config import network_seed
from cloud_server.networks.stems import build_shared_network
from cloud_server.run.results import RESULT_NAME
from cloud_server.storage.recorders import LOG_NAME as EVENTS_NAME
from datasets.catalog import label_space
from edge_client.encoder.bundle import EncoderBundle, bundle_digest
from edge_client.state import StateStore
from fleet.export.encoders import build_encoder
from fleet.report.data import read_curve
from fleet.run.folder import SCENARIO_NAME
from fleet.run.launch import launch
from fleet.run.pretrain import pretrain, write_start
from fleet.run.processes import die_with_parent
from fleet.scenario import Scenario, load_scenario, save_scenario
from fleet.start import SPEC_NAME

_LOG_NAME = "launch.log"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One `blackfleet launch`."""

    folder: Path
    settings: Mapping[str, Any] = field(repr=False)
    """Over the embedded defaults, by scenario key."""
    prepare: Callable[[], None] | None = field(default=None, repr=False)
    """Called in the run's process before it."""

    def scenario(self) -> Scenario:
        """All of its settings."""
        return load_scenario(None, self.settings)

    @property
    def is_complete(self) -> bool:
        """Whether its result is there."""
        return (self.folder / RESULT_NAME).exists()

    def result(self) -> dict[str, Any]:
        """The content of `result.json`."""
        content: dict[str, Any] = json.loads((self.folder / RESULT_NAME).read_text())
        return content

    def val_miou(self) -> float:
        """Mean validation mIoU after the last round, which choices are made by.

        It is that of the weights that serve each vehicle.
        """
        last = read_curve(self.folder / EVENTS_NAME)[-1].val_miou
        assert last is not None, "every round of a benchmark's runs ends in a validation"
        return last


def finish(runs: Sequence[Run], *, jobs: int) -> None:
    """Do what is not complete yet, `jobs` runs at a time; one that was cut off is resumed.

    Raises:
        SystemExit: a folder holds a run of other settings, or a run failed; the message says where to look.
    """
    for run in runs:
        _check_same(run)
    console = Console(stderr=True)
    todo = [run for run in runs if not run.is_complete]
    console.print(f"{len(runs) - len(todo)} of {len(runs)} runs are complete already")
    # The workers inherit it: pools of threads beyond a run's own would slow its neighbours.
    os.environ["OMP_NUM_THREADS"] = "1"
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=die_with_parent) as pool:
        futures = {pool.submit(_launch, run): run for run in todo}
        for number, future in enumerate(as_completed(futures), start=1):
            run = futures[future]
            try:
                miou = future.result()
            except Exception as error:
                pool.shutdown(cancel_futures=True)
                raise SystemExit(f"{run.folder} failed: {error}; see {_LOG_NAME} there") from error
            left_s = (time.monotonic() - began) / number * (len(todo) - number)
            console.print(
                f"{number}/{len(todo)} {run.folder.name}: mIoU {miou:.3f}, {left_s / 60:.0f} min left",
                highlight=False,
            )


def _check_same(run: Run) -> None:
    """A kept run is only good for the settings that it was made with."""
    path = run.folder / SCENARIO_NAME
    if not path.exists():
        return
    kept, wanted = load_scenario(path, {}), run.scenario()
    if wanted.cores is None:  # the run keeps how many it was planned for
        wanted = msgspec.structs.replace(wanted, cores=kept.cores)
    if wanted.fleet is None:  # it keeps the name that it drew
        wanted = msgspec.structs.replace(wanted, fleet=kept.fleet)
    if save_scenario(kept) != save_scenario(wanted):
        raise SystemExit(f"{run.folder} holds a run of other settings; remove it, or choose another folder")


def _launch(run: Run) -> float:
    """The mean local mIoU of a run, done in this process, its progress in a file of its folder."""
    if run.prepare is not None:
        run.prepare()
    run.folder.mkdir(parents=True, exist_ok=True)
    begun = (run.folder / SCENARIO_NAME).exists()
    with (run.folder / _LOG_NAME).open("a", encoding="utf-8") as log:
        console = Console(file=log, width=120)
        result = launch(run.scenario(), run.folder, resume=begun, console=console)
    return float(result["mean_local_miou"])


def pretrained(folder: Path, settings: Mapping[str, Any]) -> Path:
    """The start in `folder`, pretrained now with these settings if it is not complete yet."""
    os.environ["OMP_NUM_THREADS"] = "1"
    scenario = load_scenario(None, settings)
    pretrain(scenario, folder, resume=(folder / SCENARIO_NAME).exists(), console=Console(stderr=True))
    return folder


def local_start(run: Run, folder: Path) -> Path:
    """A start in `folder`: the encoder of a finished run's one vehicle, and an untrained network."""
    if not (folder / SPEC_NAME).exists():
        scenario = load_scenario(run.folder / SCENARIO_NAME, {})
        [vehicle], name = scenario.vehicle_ids, scenario.encoder.name
        bundle = EncoderBundle.load(run.folder / "bundles" / name)
        states = StateStore(
            run.folder / "vehicles" / vehicle, vehicle=vehicle, bundle_digest=bundle_digest(bundle)
        )
        encoder = build_encoder(name, scenario.seed).folded()
        theta = torch.from_numpy(states.load(scenario.rounds).theta)
        torch.nn.utils.vector_to_parameters(theta, encoder.parameters())
        cloud = scenario.cloud_config()
        network = build_shared_network(
            cloud.network.name,
            feature_shapes=[bundle.spec.feature_shape],
            image_size=bundle.spec.image_size,
            num_classes=label_space(cloud.label_space).num_classes,
            seed=network_seed(scenario.seed),
        )
        folder.mkdir(parents=True, exist_ok=True)
        write_start(scenario, folder, encoder, network.state_dict(), val_miou=0.0, test_miou=None)
    return folder
