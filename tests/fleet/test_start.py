"""Fleets that begin from a pretrained start: its weights everywhere, and frames of its source to test on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from start_fixtures import QUIET, SOURCE, TARGET, changed, killed_after, learnt, run

from cloud_server.config import NetworkConfig, ZerothOrderConfig
from datasets.frame import DatasetError
from fleet.cli.sweep import compare
from fleet.errors import OperatorError
from fleet.scenario import DatasetPart, EncoderPart, EvaluationPart, Scenario, load_scenario
from fleet.start import Start
from protocol.errors import Mistake
from protocol.local_model import LocalModel
from protocol.plans.adaptation import Adaptation
from protocol.plans.first_order import FirstOrder
from protocol.plans.local_loss import LocalLossPlan

ALGORITHMS = (
    "blackfed-v1",
    "blackfed-v2",
    "frozen",
    "split",
    "individual",
    "blackfleet",
    "fedavg",
    "centralized",
)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_run_on_the_same_frames_begins_with_the_miou_of_the_start(
    source_scenario: Scenario, start: Start, tmp_path: Path, algorithm: str
) -> None:
    scenario = changed(
        source_scenario,
        algorithm=algorithm,
        start=str(start.folder),
        rounds=1,
        seed=5,
        first_order=FirstOrder(epochs=1, batch_size=4),
        zeroth_order=ZerothOrderConfig(epochs=0),
        local_loss=LocalLossPlan(warm_up_epochs=0, epochs=1),
    )
    result = run(scenario, tmp_path / "run")
    assert result["initial_local_miou"] == pytest.approx(start.spec.test_miou, abs=2e-3)
    assert result["initial_source_miou"] == result["initial_local_miou"]
    assert result["vehicles"]["car-01"]["frames_source"] == len(start.spec.test)
    assert result["mean_source_miou"] == result["mean_local_miou"]


def test_fleet_is_also_tested_on_clear_source_frames_before_and_after(
    target_scenario: Scenario, start: Start, tmp_path: Path
) -> None:
    result = run(target_scenario, tmp_path / "run")
    assert result["initial_source_miou"] == pytest.approx(start.spec.test_miou, abs=2e-3)
    assert result["initial_local_miou"] < result["initial_source_miou"]
    assert result["mean_source_miou"] == result["vehicles"]["car-01"]["source_miou"]
    assert result["mean_source_miou"] != result["initial_source_miou"]
    partition = json.loads((tmp_path / "run" / "partition.json").read_text())["vehicles"]["car-01"]
    assert tuple(partition["source"]) == start.spec.test
    assert all(key.startswith(TARGET) for key in partition["train"] + partition["val"] + partition["test"])


def test_number_of_source_frames_is_the_scenarios(
    target_scenario: Scenario, start: Start, tmp_path: Path
) -> None:
    none = changed(target_scenario, evaluation=EvaluationPart(source_frames=0))
    result = run(none, tmp_path / "none")
    assert result["vehicles"]["car-01"]["frames_source"] == 0
    assert (result["mean_source_miou"], result["initial_source_miou"]) == (None, None)
    one = changed(target_scenario, evaluation=EvaluationPart(source_frames=1))
    assert run(one, tmp_path / "one")["vehicles"]["car-01"]["frames_source"] == 1
    assert len(start.spec.test) > 1


def test_run_folder_keeps_its_own_copy_of_the_start(
    target_scenario: Scenario, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(target_scenario, tmp_path / "undisturbed")
    outside = tmp_path / "outside"
    shutil.copytree(start.folder, outside)
    moved = changed(target_scenario, start=str(outside))
    with killed_after(1):
        run(moved, tmp_path / "run")
    shutil.rmtree(outside)
    result = run(moved, tmp_path / "run", resume=True)
    assert result["vehicles"]["car-01"]["source_miou"] == expected["vehicles"]["car-01"]["source_miou"]
    assert learnt(tmp_path / "run") == learnt(tmp_path / "undisturbed")


def test_comparison_shows_what_was_forgotten(target_scenario: Scenario, tmp_path: Path) -> None:
    content = compare(target_scenario, ("frozen", "centralized"), (0,), tmp_path / "compare", console=QUIET)
    for entry in content["summary"]:
        assert entry["initial_source_miou_mean"] > 0
    text = (tmp_path / "compare" / "compare.md").read_text()
    assert "| algorithm | local mIoU | OOD mIoU | source before | source after | up |" in text
    assert "source after" in (tmp_path / "compare" / "report.html").read_text()


def test_federated_weights_start_from_it(target_scenario: Scenario, start: Start, tmp_path: Path) -> None:
    run(changed(target_scenario, algorithm="fedavg"), tmp_path / "run")
    model = LocalModel.load(tmp_path / "run" / "local_model")
    network = start.network_weights()
    for name in ("normalise.running_mean", "head.0.weight"):
        assert np.array_equal(model.weights[f"network.{name}"], network[name].numpy())


# What is refused -------------------------------------------------------------------------------------


def _other_data(scenario: Scenario, tmp_path: Path, spoil: Callable[[Path], None]) -> Scenario:
    root = tmp_path / "data"
    assert scenario.dataset.root is not None
    shutil.copytree(scenario.dataset.root, root)
    spoil(root)
    return changed(scenario, dataset=msgspec.structs.replace(scenario.dataset, root=str(root)))


def _without_source(root: Path) -> None:
    for path in root.glob(f"train*/{SOURCE}*"):
        path.unlink()


def _with_other_labels(root: Path) -> None:
    for path in root.glob(f"trainannot/{SOURCE}*"):
        cv2.imwrite(str(path), np.zeros((60, 80), np.uint8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": "32x48"}, r"pretrained with images of 64x48, this run has 32x48; give the same"),
        ({"encoder": EncoderPart(name="stride8-c8")}, "with encoder stride8-c4, this run has stride8-c8"),
        (
            {"vehicles": 2, "encoders": {"car-02": "stride8-c8"}},
            "with encoder stride8-c4, this run has stride8-c4 and stride8-c8",
        ),
        ({"network": NetworkConfig(name="segformer-b0")}, "with network compact, this run has segformer-b0"),
        (
            {"start": "nowhere"},
            r"nowhere holds no start \(start.json is missing\); make one with `blackfleet",
        ),
        (
            {"algorithm": "fedavg", "adaptation": Adaptation(anchor=0.1)},
            "fedavg trains .* in one piece, on labels: adaptation.anchor must be 0, got 0.1",
        ),
        (
            {"algorithm": "centralized", "network": NetworkConfig(source_replay=0.5)},
            "network.source_replay must be 0, got 0.5",
        ),
        (
            {"network": NetworkConfig(source_replay=0.5, learns=False)},
            r"takes no steps: network\.source_replay must be 0, got 0\.5",
        ),
    ],
)
def test_start_that_does_not_fit_is_refused_and_leaves_the_folder_free(
    target_scenario: Scenario, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(Mistake, match=message):
        run(changed(target_scenario, **change), tmp_path / "run")
    assert not (tmp_path / "run" / "target_scenario.yaml").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_source, r"frame seq0_\w+, on which forgetting is to be measured, is not in this data set"),
        (_with_other_labels, r"frame seq0_\w+, on which .* has another label here; give the data set"),
    ],
)
def test_data_without_the_source_frames_is_refused(
    target_scenario: Scenario, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    other = _other_data(target_scenario, tmp_path, spoil)
    with pytest.raises(DatasetError, match=message):
        run(other, tmp_path / "run")


def test_start_of_other_labels_is_refused(target_scenario: Scenario, tmp_path: Path) -> None:
    generated = changed(target_scenario, dataset=DatasetPart(), conditions={})
    with pytest.raises(OperatorError, match="with labels of camvid, this run has cityscapes"):
        run(generated, tmp_path / "run")


def test_damaged_start_is_refused(target_scenario: Scenario, start: Start, tmp_path: Path) -> None:
    shutil.copytree(start.folder, tmp_path / "start")
    path = tmp_path / "start" / "cloud_network.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(OperatorError, match=r"damaged start .*cloud_network.safetensors is not the file"):
        run(changed(target_scenario, start=str(tmp_path / "start")), tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"network.source_replay": 0.5}, "network.source_replay needs source features.*give --start"),
        ({"network.source_replay": 1.5}, "network.source_replay must be from 0 to 1, got 1.5"),
        ({"adaptation.anchor": -1.0}, "adaptation.anchor must be at least 0, got -1.0"),
        (
            {"start": "a", "network.weights": "b"},
            "start brings the network's weights; remove network.weights",
        ),
        ({"evaluation.source_frames": -1}, "evaluation.source_frames must be at least 0, got -1"),
        ({"dataset.generated_cities": 0}, "generated_cities must be at least 1, got 0"),
        ({"dataset.cities": []}, "cities names no city"),
    ],
)
def test_impossible_settings_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        load_scenario(None, overrides)
