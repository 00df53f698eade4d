"""SplitFed: a round is split learning, and an average."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fleet_fixtures import CARS, TinyFleet, World
from supervision import Supervisor

from cloud_server.algorithms.splitfed import _drawn_order
from cloud_server.storage.checkpoint import load_checkpoint
from edge_client.encoder.bundle import EncoderBundle
from protocol.plans.first_order import FirstOrder

_SEED = 0
"""In its first round v2 takes the vehicles in the fleet's order."""


def _fleet(world: World, folder: Path, algorithm: str, **changes: Any) -> TinyFleet:
    first = FirstOrder(epochs=1, batch_size=4, rate=5e-3)
    return TinyFleet(
        world, folder, **{"algorithm": algorithm, "seed": _SEED, "first_order": first, **changes}
    )


def _run(fleet: TinyFleet) -> TinyFleet:
    Supervisor(fleet).run()
    return fleet


def _network(fleet: TinyFleet) -> dict[str, torch.Tensor]:
    tensors, _ = load_checkpoint(fleet.run_folder / "cloud" / "checkpoints")
    return {name: tensor for name, tensor in tensors.items() if name.startswith("/network/")}


@pytest.mark.parametrize(("algorithm", "like"), [("splitfed-v1", "individual"), ("splitfed-v2", "split")])
def test_one_round_is_split_learning_and_an_average(
    algorithm: str, like: str, tiny_world: World, tmp_path: Path
) -> None:
    assert _drawn_order(_fleet(tiny_world, tmp_path, algorithm).config, 1) == CARS
    fleet = _run(_fleet(tiny_world, tmp_path / "averaged", algorithm, rounds=1))
    plain = _run(_fleet(tiny_world, tmp_path / "plain", like, rounds=1))
    turns = {car: plain.states(car).load(turn).theta for car, turn in _last_turns(plain).items()}
    tensors, _ = load_checkpoint(fleet.run_folder / "cloud" / "checkpoints")
    [moved] = [tensor.numpy() for name, tensor in tensors.items() if name.startswith("sharing/")]
    theta0 = EncoderBundle.load(tiny_world.bundle).theta0
    np.testing.assert_allclose(theta0 + moved, np.mean(list(turns.values()), axis=0), atol=1e-6)
    if like == "split":
        expected = _network(plain)
    else:
        own = [plain.kept("own", car, 1) for car in CARS]
        expected = {name: (own[0][name].double() + own[1][name]) / 2 for name in _network(fleet)}
    for name, tensor in _network(fleet).items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, expected[name].to(tensor.dtype), rtol=0, atol=1e-7)
    result = fleet.result()
    assert result["frames_seen"] == plain.result()["frames_seen"]
    _assert_work_is_counted(result, EncoderBundle.load(tiny_world.bundle))
    downlink = result["vehicles"][CARS[0]]["downlink_bytes_by_type"]
    assert downlink["gradient"] > 0 and downlink["sharedencoder"] > 0


def _assert_work_is_counted(result: dict[str, Any], bundle: EncoderBundle) -> None:
    """Of six train frames in two batches, and two to validate on; not of the evaluations."""
    adds = {name: graph.multiply_adds for name, graph in bundle.spec.graphs.items()}
    assert adds["tape"] == adds["forward"] < adds["vjp"] < 2 * adds["forward"]
    for entry in result["vehicles"].values():
        assert (entry["forwards"], entry["ways_back"]) == (6 + 2, 6)
        assert entry["forward_equivalents"] == pytest.approx(8 + 6 * adds["vjp"] / adds["forward"])
    assert result["steps"] == 2 * len(CARS)
    total = sum(entry["forward_equivalents"] for entry in result["vehicles"].values())
    assert result["forward_equivalents"] == pytest.approx(total)


def _last_turns(fleet: TinyFleet) -> dict[str, int]:
    turns: dict[str, int] = load_checkpoint(fleet.run_folder / "cloud" / "checkpoints")[1]["last_trained"]
    return turns


@pytest.mark.parametrize(
    ("algorithm", "points"),
    [
        ("splitfed-v1", {(CARS[1], "gradient", 3), (CARS[0], "send-encoder", 2)}),
        (
            "splitfed-v2",
            {(CARS[1], "send-encoder", 1), (CARS[0], "shared-encoder", 2), (CARS[1], "gradient", 3)},
        ),
    ],
)
def test_killed_process_changes_nothing(
    algorithm: str,
    points: set[tuple[str, str, int]],
    tiny_world: World,
    tmp_path: Path,
) -> None:
    """In the midst of a turn, before the averaging, and between a vehicle's stage and the average."""
    calm = _run(_fleet(tiny_world, tmp_path / "calm", algorithm))
    fleet = _fleet(tiny_world, tmp_path / "killed", algorithm)
    Supervisor(fleet).run_with_kills(points)
    assert fleet.fingerprint() == calm.fingerprint()
    assert fleet.result()["forward_equivalents"] == calm.result()["forward_equivalents"]
    assert fleet.scores() == calm.scores()
