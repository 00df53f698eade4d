"""Whole runs on frames of one's own with a table of classes, `--dataset folder`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import pytest
import yaml
from fleet_fixtures import World
from start_fixtures import QUIET, changed, run, source_scenario_of

from datasets.labels import CAMVID
from fleet.cli.evaluate import evaluate_predictions
from fleet.errors import OperatorError
from fleet.report.page import write_report
from fleet.run.pretrain import pretrain
from fleet.scenario import DatasetPart, Scenario
from protocol.plans.first_order import FirstOrder
from protocol.plans.local_loss import LocalLossPlan


@pytest.fixture
def root(tiny_world: World, tmp_path: Path) -> Path:
    """The tiny world's frames, their labels in the colours of CamVid's classes."""
    root = tmp_path / "mine"
    for path in (tiny_world.data_root / "train").iterdir():
        sequence = path.stem.partition("_")[0]
        for kind in ("images", "labels"):
            (root / kind / sequence).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / "images" / sequence)
        ids_HW = cv2.imread(str(tiny_world.data_root / "trainannot" / path.name), cv2.IMREAD_UNCHANGED)
        colours_HWC = CAMVID.colorize(CAMVID.to_train_ids(ids_HW))
        cv2.imwrite(str(root / "labels" / sequence / path.name), colours_HWC[:, :, ::-1])
    rows = [{"name": c.name, "id": c.label_id, "color": list(c.color_rgb)} for c in CAMVID.classes]
    table = {
        "name": "town",
        "labels": "colors",
        "classes": [row for row in rows if row["name"] != "void"],
        "ignore": [[0, 0, 0]],
    }
    (root / "dataset.yaml").write_text(yaml.safe_dump(table))
    return root


def _scenario(world: World, dataset: DatasetPart, algorithm: str = "blackfleet") -> Scenario:
    return changed(
        source_scenario_of(world),
        algorithm=algorithm,
        vehicles=2,
        rounds=1,
        dataset=dataset,
        first_order=FirstOrder(epochs=2, batch_size=4),
        local_loss=LocalLossPlan(warm_up_epochs=1, epochs=1),
    )


def test_fleet_learns_the_same_from_either_layout(tiny_world: World, root: Path, tmp_path: Path) -> None:
    own = _scenario(tiny_world, DatasetPart(name="folder", root=str(root)))
    known = _scenario(tiny_world, DatasetPart(name="camvid", root=str(tiny_world.data_root)))
    result, expected = run(own, tmp_path / "own"), run(known, tmp_path / "known")
    assert result["dataset"] == "folder" and result["classes"].keys() == expected["classes"].keys()
    for key in ("mean_local_miou", "mean_ood_miou", "classes", "confusion"):
        assert result[key] == expected[key], key

    scores = evaluate_predictions(tmp_path / "own", root)
    assert scores.dataset.startswith("town-")
    assert scores.summary["mean_iou"] == evaluate_predictions(
        tmp_path / "known", tiny_world.data_root
    ).summary["mean_iou"]  # fmt: skip
    shutil.move(root, root.with_name("away"))  # a report needs none of it
    page = write_report(tmp_path / "own").read_text()
    assert "pavement" in page


def test_run_goes_on_with_the_classes_it_began_with_alone(
    tiny_world: World, root: Path, tmp_path: Path
) -> None:
    scenario = _scenario(tiny_world, DatasetPart(name="folder", root=str(root)), "fedavg")
    result = run(scenario, tmp_path / "run")
    assert run(scenario, tmp_path / "run", resume=True) == result
    table = yaml.safe_load((root / "dataset.yaml").read_text())
    table["classes"][0]["name"] = "heaven"
    (root / "dataset.yaml").write_text(yaml.safe_dump(table))
    with pytest.raises(
        OperatorError, match=r"the classes in .*mine are not those .*classes.json.*put them back"
    ):
        run(scenario, tmp_path / "run", resume=True)


def test_start_of_other_classes_is_refused(tiny_world: World, root: Path, tmp_path: Path) -> None:
    dataset = DatasetPart(name="folder", root=str(root))
    start = pretrain(
        changed(_scenario(tiny_world, dataset), vehicles=1), tmp_path / "start", resume=False, console=QUIET
    )
    assert start.spec.label_space.startswith("town-")
    scenario = changed(_scenario(tiny_world, dataset), start=str(start.folder))
    assert json.dumps(run(scenario, tmp_path / "run")["mean_local_miou"])
    camvid = DatasetPart(name="camvid", root=str(tiny_world.data_root))
    with pytest.raises(OperatorError, match=r"pretrained with labels of town-.*, this run has camvid"):
        run(changed(scenario, dataset=camvid), tmp_path / "other")
