"""`blackfleet launch` as its users run it: a process that starts processes."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
from process_fixtures import CARS, Launch, module, run

from fleet.scenario import load_scenario

pytestmark = pytest.mark.timeout(300)

_RESULT_KEYS = {
    "algorithm",
    "dataset",
    "seed",
    "vehicles",
    "mean_local_miou",
    "mean_ood_miou",
    "initial_local_miou",
    "classes",
    "uplink_bytes",
    "downlink_bytes",
    "wall_s",
}
_VEHICLE_KEYS = {"local_miou", "ood_miou", "frames_train", "uplink_bytes", "downlink_bytes", "queries"}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not strict JSON")


def test_result_has_every_field_with_values_in_range(reference: Launch) -> None:
    result = reference.result()
    assert set(result) >= _RESULT_KEYS
    assert set(result["vehicles"]) == set(CARS)
    for entry in result["vehicles"].values():
        assert set(entry) >= _VEHICLE_KEYS
        assert 0 <= entry["local_miou"] <= 1
        assert 0 <= entry["ood_miou"] <= 1
        assert entry["frames_train"] == 5
        assert entry["queries"] == 2 * 2 * 2  # rounds, batches, both sides of the one query
        assert entry["uplink_bytes"] > entry["downlink_bytes"] > 0
    for direction in ("uplink_bytes", "downlink_bytes"):
        assert result[direction] == sum(entry[direction] for entry in result["vehicles"].values())
    mean = sum(entry["local_miou"] for entry in result["vehicles"].values()) / len(CARS)
    assert result["mean_local_miou"] == pytest.approx(mean, abs=1e-12)
    assert len(result["classes"]) == 19


def test_run_folder_holds_everything_a_run_leaves(reference: Launch) -> None:
    folder = reference.run_folder
    kept = load_scenario(folder / "scenario.yaml", {})
    assert kept.fleet is not None
    assert kept == load_scenario(reference.scenario, {"broker": "amqtt", "fleet": kept.fleet})
    events = [
        json.loads(line, parse_constant=_refuse_constant)
        for line in (folder / "log.jsonl").read_text().splitlines()
    ]
    # Vehicles that leave when it is written may be told of afterwards.
    assert next(e["event"] for e in reversed(events) if e["event"] != "left") == "result"
    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))
    assert list((folder / "cloud" / "checkpoints").glob("*.safetensors"))
    for car in CARS:
        predictions = sorted((folder / "predictions" / car).glob("*_labelIds.png"))
        overlays = sorted((folder / "overlays" / car).glob("*.png"))
        assert predictions
        assert overlays
        assert {cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape for path in predictions} == {(48, 64)}
        assert all(cv2.imread(str(path)).std() > 0 for path in overlays)
    assert "results in" in reference.output.read_text()


def test_predictions_evaluate_to_the_miou_of_the_result(reference: Launch, frames_root: Path) -> None:
    output = reference.run_folder / "scores.json"
    arguments = ("evaluate", reference.run_folder, frames_root, "--output", output)
    done = run(module("fleet.cli", *arguments))
    assert done.returncode == 0, done.stderr
    scores = json.loads(output.read_text())
    result = reference.result()
    for car in CARS:
        assert scores["vehicles"][car] == pytest.approx(result["vehicles"][car]["local_miou"], abs=1e-12)
