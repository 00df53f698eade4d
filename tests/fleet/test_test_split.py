"""A test split: vehicles divide `train` alone, the fleet is scored on the rest, and nothing else changes."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from city_fixtures import write_cities
from fleet_fixtures import World
from official_tool import official_python
from rich.console import Console
from start_fixtures import QUIET, changed, run

from cloud_server.config import ZerothOrderConfig
from datasets.catalog import open_dataset
from datasets.divided import open_frames
from fleet.cli.evaluate import evaluate_models, run_evaluate
from fleet.compare.tables import summarise
from fleet.errors import OperatorError
from fleet.frames.allocation import allocate, scored_on_split
from fleet.report.page import write_report
from fleet.run.pretrain import pretrain
from fleet.scenario import DatasetPart, EncoderPart, EvaluationPart, Scenario, load_scenario
from fleet.show.progress import result_table
from protocol.errors import Mistake
from protocol.plans.federated import FederatedPlan
from protocol.plans.first_order import FirstOrder
from protocol.plans.local_loss import LocalLossPlan
from protocol.plans.spsa import SpsaPlan

_VAL = 5
"""Frames of each sequence in the split `val`."""


@pytest.fixture(scope="module")
def root(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world's frames in two splits; `val` has labels of another size than the encoder's input."""
    folder = tmp_path_factory.mktemp("split") / "data"
    shutil.copytree(tiny_world.data_root, folder)
    for kind in ("", "annot"):
        (folder / f"val{kind}").mkdir()
        files = sorted((folder / f"train{kind}").iterdir())
        for path in [*files[:_VAL], *files[-_VAL:]]:
            path.rename(folder / f"val{kind}" / path.name)
    return folder


def _scenario(root: Path, *, test_split: str | None = "val", **changes: Any) -> Scenario:
    settings: dict[str, Any] = {
        "algorithm": "frozen",
        "vehicles": 2,
        "rounds": 1,
        "image_size": "64x48",
        "cores": 1,
        "broker": "memory",
        "encoder": EncoderPart(name="stride8-c4", mode="rebuild"),
        "dataset": DatasetPart(
            name="camvid", root=str(root), test_split=test_split, partition="sequence", parts="60/20/20"
        ),
        "first_order": FirstOrder(epochs=2, batch_size=4, rate=5e-3),
        "zeroth_order": ZerothOrderConfig(batches=1, batch_size=3),
        "spsa": SpsaPlan(queries=1),
        "local_loss": LocalLossPlan(warm_up_epochs=1, epochs=1),
        "evaluation": EvaluationPart(overlays=0),
    }
    return Scenario(**{**settings, **changes})


@pytest.fixture(scope="module")
def undivided(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run has that knows nothing of a test split, on the same train frames."""
    folder = tmp_path_factory.mktemp("undivided")
    for kind in ("train", "trainannot"):
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / kind).symlink_to(root / kind)
    return run(_scenario(folder / "data", test_split=None), folder / "run")


@pytest.mark.parametrize("algorithm", ["frozen", "blackfed-v2", "blackfleet", "fedavg", "centralized"])
def test_fleet_is_scored_on_the_whole_split_that_nobody_has(
    root: Path, undivided: dict[str, Any], tmp_path: Path, algorithm: str
) -> None:
    scenario = _scenario(root, algorithm=algorithm)
    result = run(scenario, tmp_path)
    tested = {path.stem for path in (root / "val").iterdir()}
    shares = json.loads((tmp_path / "partition.json").read_text())["vehicles"]
    for share in shares.values():
        assert not tested & {key for part in ("train", "val", "test", "ood") for key in share[part]}
    scored = scored_on_split(scenario)
    assert scored == (
        ("car-01",) if algorithm in ("frozen", "fedavg", "centralized") else ("car-01", "car-02")
    )
    mious = [result["vehicles"][vehicle]["fleet_miou"] for vehicle in scored]
    assert result["fleet_miou"] == pytest.approx(np.mean(mious))
    assert result["fleet_miou_std"] == pytest.approx(np.std(mious, ddof=1) if len(mious) > 1 else 0)
    models = evaluate_models(tmp_path, root)
    assert tuple(models) == scored
    for vehicle, model in models.items():
        assert model.frames == len(tested)
        assert model.summary["mean_iou"] == pytest.approx(
            result["vehicles"][vehicle]["fleet_miou"], abs=1e-12
        )
        assert model.summary["classes"] == pytest.approx(result["vehicles"][vehicle]["fleet_classes"])
    bytes_about_it = (result["fleet_uplink_bytes"], result["fleet_downlink_bytes"])
    assert bytes_about_it == (0, 0) if algorithm == "centralized" else min(bytes_about_it) > 0
    curve = (tmp_path / "log.jsonl").read_text()
    assert '"split": "fleet"' in curve and any((tmp_path / "tensorboard").iterdir())
    if algorithm == "frozen":
        for key in ("confusion", "mean_ood_miou", "frames_seen"):
            assert result[key] == undivided[key]
        # A word of the split in two turns and a hello is all that is added.
        assert 0 <= result["uplink_bytes"] - undivided["uplink_bytes"] < 64
        assert undivided["fleet_uplink_bytes"] == 0 and undivided["fleet_miou"] is None


def test_official_tool_comes_to_the_same_on_labels_of_any_size(tmp_path: Path) -> None:
    """Of Cityscapes' own size, of half of it, and of another shape, far from what the encoder sees."""
    official_python()
    root = write_cities(tmp_path / "data", {"train": {"aachen": 5, "bochum": 5}})
    for city, size_WH in {"munster": (2048, 1024), "lindau": (1024, 512), "ulm": (90, 70)}.items():
        write_cities(root, {"val": {city: 1}}, size_WH=size_WH)
    dataset = DatasetPart(name="cityscapes", root=str(root), test_split="val")
    result = run(_scenario(root, dataset=dataset), tmp_path / "run")
    [model] = evaluate_models(tmp_path / "run", root, official=True).values()
    assert model.official is not None and model.official.agrees
    assert model.official.scores["mean_iou"] == pytest.approx(result["fleet_miou"], abs=1e-9)
    assert model.summary["mean_iiou"] is not None and model.frames == 3


def test_run_folder_is_evaluated_with_its_models(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(_scenario(root), tmp_path)
    assert run_evaluate(tmp_path, root, None, False, None) == 0
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert content["frames"] == sum(entry["frames_test"] for entry in result["vehicles"].values())
    assert content["models"]["car-01"]["mean_iou"] == pytest.approx(result["fleet_miou"], abs=1e-12)
    assert "fleet mIoU %" in capsys.readouterr().out


def test_score_is_in_every_table(root: Path, tmp_path: Path) -> None:
    result = run(_scenario(root), tmp_path)
    shown = f"{result['fleet_miou']:.3f}"
    page = write_report(tmp_path).read_text()
    assert "fleet mIoU" in page and "frozen fleet" in page and "test split" in page and page.count(shown) > 1
    [entry] = summarise(["frozen"], [{"algorithm": "frozen", "result": result}])
    assert (entry["fleet_miou_mean"], entry["fleet_miou_std"]) == (result["fleet_miou"], 0.0)
    console = Console(file=io.StringIO(), width=120)
    console.print(result_table(result))
    printed = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert f"fleet: on the whole test split, {shown} over 1 model" in printed


def test_split_may_be_a_folder_of_its_own(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for kind in ("val", "valannot"):
        shutil.copytree(root / kind, other / kind.replace("val", "train"))
    shares = allocate(_scenario(root), open_frames("camvid", root, str(other)))
    assert {len(share.fleet) for share in shares.values()} == {0, 2 * _VAL}
    both = shutil.copytree(root, tmp_path / "both")
    for kind in ("", "annot"):
        shutil.copytree(root / f"val{kind}", both / f"train{kind}", dirs_exist_ok=True)
    with pytest.raises(Mistake, match="frame seq0_0000 is in the test split and among those to train on"):
        open_frames("camvid", both, str(other))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("test", r"camvid in .* has no split test, it has train, val"),
        ("train", r"no test split 'train': camvid takes val, test or the path of a folder"),
        ("elsewhere/data", r"no test split 'elsewhere/data': camvid takes"),
    ],
)
def test_split_that_is_not_there_is_named(root: Path, split: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=message):
        run(_scenario(root, test_split=split), tmp_path / "run")
    assert not (tmp_path / "run" / "scenario.yaml").exists()


def test_split_that_is_empty_or_void_is_named(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "data")
    labels = sorted((tmp_path / "data" / "valannot").iterdir())
    for path in labels:
        cv2.imwrite(str(path), np.full(cv2.imread(str(path)).shape[:2], 11, np.uint8))
    with pytest.raises(OperatorError, match="all labels of the test split val are void"):
        run(_scenario(tmp_path / "data"), tmp_path / "run")
    for path in [*labels, *(tmp_path / "data" / "val").iterdir()]:
        path.unlink()
    with pytest.raises(Mistake, match="no frames in the splits val"):
        run(_scenario(tmp_path / "data"), tmp_path / "run")


def test_data_that_lies_undivided_has_no_split(root: Path, tmp_path: Path) -> None:
    for name, suffix in (("images", ""), ("labels", "_L")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"seq0_0001{suffix}.png").touch()
    with pytest.raises(Mistake, match="has no split train, it has none: its frames lie undivided"):
        open_frames("camvid", tmp_path, "val")


def test_models_scored_are_spread_over_the_fleet_and_one_of_each_that_is_the_same() -> None:
    scenario = load_scenario(None, {"vehicles": 12, "evaluation.fleet_vehicles": 3})
    assert scored_on_split(scenario) == ("car-01", "car-05", "car-09")
    frozen = changed(scenario, algorithm="frozen", encoders={"car-03": "stride8-c16"})
    assert scored_on_split(frozen) == ("car-01", "car-03")
    local = changed(scenario, algorithm="fedavg", federated=FederatedPlan(statistics="local"))
    assert len(scored_on_split(local)) == 3
    with pytest.raises(OperatorError, match=r"evaluation\.fleet_vehicles must be at least 1, got 0"):
        load_scenario(None, {"evaluation.fleet_vehicles": 0})


@pytest.mark.parametrize("parts", ["70/10", "70/20/20", "100/0/0", "a/b/c"])
def test_parts_that_are_no_percentages_are_refused(parts: str) -> None:
    with pytest.raises(OperatorError, match="parts must be TRAIN/VAL/TEST in percent"):
        load_scenario(None, {"dataset.parts": parts})


def test_start_that_knows_the_split_is_refused(root: Path, tmp_path: Path) -> None:
    scenario = _scenario(root, test_split=None, vehicles=1)
    start = pretrain(scenario, tmp_path / "start", resume=False, console=QUIET)
    assert set(start.spec.test) & {ref.key for ref in open_dataset("camvid", root, splits=["val"]).refs}
    with pytest.raises(Mistake, match=r"was pretrained on the whole data set, frame .* of the test split"):
        run(_scenario(root, start=str(start.folder)), tmp_path / "run")


def test_rendered_data_has_the_split_val_alone() -> None:
    with pytest.raises(OperatorError, match="test_split of generated must be val"):
        load_scenario(None, {"dataset.test_split": "test"})
    assert msgspec.structs.replace(DatasetPart(), test_split="val").names_split
