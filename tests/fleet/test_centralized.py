"""`centralized`: the same budget as a fleet's, repeatable, and resumable at every commit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from fleet_fixtures import World
from rich.console import Console

from cloud_server.run.persistence import RunState
from cloud_server.schedule import Stage
from cloud_server.storage.checkpoint import load_checkpoint, unflatten_state
from fleet.run.launch import launch
from fleet.scenario import DatasetPart, EncoderPart, Scenario
from protocol.batches import batch_bounds
from protocol.plans.first_order import FirstOrder


@pytest.fixture(scope="module")
def scenario(tiny_world: World) -> Scenario:
    return Scenario(
        algorithm="centralized",
        vehicles=2,
        rounds=2,
        image_size="64x48",
        cores=1,
        encoder=EncoderPart(name="stride8-c4", mode="rebuild"),
        dataset=DatasetPart(name="camvid", root=str(tiny_world.data_root)),
        first_order=FirstOrder(epochs=2, batch_size=4, rate=5e-3),
    )


@pytest.fixture(scope="module")
def complete(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without any disturbance."""
    folder = tmp_path_factory.mktemp("complete") / "run"
    _launch(scenario, folder)
    return folder


def _launch(scenario: Scenario, folder: Path, *, resume: bool = False) -> dict[str, Any]:
    return launch(scenario, folder, resume=resume, console=Console(quiet=True))


def _result(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return content


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "cloud" / "checkpoints")[0]


def _is_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_run_folder_is_an_ordinary_one_with_nothing_sent(complete: Path) -> None:
    result = _result(complete)
    assert result["mean_local_miou"] > result["initial_local_miou"]
    assert (result["uplink_bytes"], result["downlink_bytes"]) == (0, 0)
    assert sum(sum(row) for row in result["confusion"]) > 0
    for car, entry in result["vehicles"].items():
        assert (entry["queries"], entry["uplink_bytes"], entry["downlink_bytes"]) == (0, 0, 0)
        assert entry["ood_miou"] > 0
        predictions = list((complete / "predictions" / car).glob("*_labelIds.png"))
        assert len(predictions) == entry["frames_test"]
    events = [json.loads(line) for line in (complete / "log.jsonl").read_text().splitlines()]
    curves = [event for event in events if event["event"] == "curve"]
    assert [curve["round"] for curve in curves] == [1, 2]
    assert curves[0].keys() >= {"stage", "frames_seen", "loss", "val_miou", "uplink_bytes", "wall_s"}
    assert (events[0]["event"], events[-1]["event"]) == ("run", "result")


def test_budget_is_that_of_a_fleet(scenario: Scenario, complete: Path, tmp_path: Path) -> None:
    _check_budget(scenario, complete)
    first = msgspec.structs.replace(scenario.first_order, replay_steps=2)
    replayed = msgspec.structs.replace(scenario, first_order=first)
    _launch(replayed, tmp_path / "run")
    _check_budget(replayed, tmp_path / "run")


def _check_budget(scenario: Scenario, folder: Path) -> None:
    result, first = _result(folder), scenario.first_order
    train_frames = sum(entry["frames_train"] for entry in result["vehicles"].values())
    passes = scenario.rounds * first.epochs * (1 + first.replay_steps)
    assert result["frames_seen"] == train_frames * passes
    tensors, meta = load_checkpoint(folder / "cloud" / "checkpoints")
    steps = int(unflatten_state(tensors, meta["algorithm"]["trainer"])["steps"])
    assert steps == len(batch_bounds(train_frames, first.batch_size)) * passes


def test_same_seed_gives_the_same_bits_and_another_seed_others(
    scenario: Scenario, complete: Path, tmp_path: Path
) -> None:
    other = msgspec.structs.replace(scenario, seed=1)
    for name, chosen in {"again": scenario, "other": other}.items():
        _launch(chosen, tmp_path / name)
    assert _is_equal(_weights(complete), _weights(tmp_path / "again"))
    assert not _is_equal(_weights(complete), _weights(tmp_path / "other"))


@pytest.mark.parametrize("commits", [1, 2, 3])
def test_interrupted_run_resumes_to_the_same_bits(
    scenario: Scenario, complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commits: int
) -> None:
    expected = _result(complete)
    commit = RunState.commit

    def commit_and_stop(self: RunState, stage: Stage, *arguments: Any) -> None:
        commit(self, stage, *arguments)
        if stage.number + 1 == commits:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunState, "commit", commit_and_stop)
        with pytest.raises(KeyboardInterrupt):
            _launch(scenario, tmp_path / "run")
    result = _launch(scenario, tmp_path / "run", resume=True)
    assert _is_equal(_weights(tmp_path / "run"), _weights(complete))
    for key in ("vehicles", "classes", "confusion", "frames_seen"):
        assert result[key] == expected[key]


def test_complete_run_is_not_run_again(
    scenario: Scenario, complete: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet.run.launch.run_centralized", None)
    assert _launch(scenario, complete, resume=True) == _result(complete)
