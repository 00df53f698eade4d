"""`blackfleet evaluate` on folders: against the official tool, on run folders, and on faulty input."""

from __future__ import annotations

import json
import shutil
import venv
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from official_tool import official_python

from datasets.generated import GeneratorSettings, generate_dataset
from datasets.labels import CAMVID, CITYSCAPES, VOID
from datasets.readers.camvid import CamVidFrames
from evaluation import official as official_evaluation
from evaluation import official_python as official_choice
from evaluation.errors import EvaluationError
from evaluation.official_python import VARIABLE
from evaluation.predictions import write_prediction
from fleet.cli.evaluate import evaluate_predictions, run_evaluate
from protocol.errors import Mistake

SETTINGS = GeneratorSettings(cities=2, frames_per_sequence=3, image_size=(160, 120), seed=5)


@pytest.fixture(scope="module")
def generated_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generated")
    generate_dataset(root, SETTINGS, split="val")
    return root


def label_files(root: Path) -> list[Path]:
    return sorted((root / "gtFine").rglob("*_gtFine_labelIds.png"))


def key_of(label_path: Path) -> str:
    return label_path.name.removesuffix("_gtFine_labelIds.png")


def predict_anything(root: Path, folder: Path, *, spoil: float = 0.3) -> Path:
    """Write a prediction for each frame: shifted ground truth with any ids strewn in."""
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    for path in label_files(root):
        ids_HW = np.roll(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), 5, axis=1)
        wrong = rng.random(ids_HW.shape) < spoil
        ids_HW[wrong] = rng.integers(0, 34, int(wrong.sum()))
        assert cv2.imwrite(str(folder / f"{key_of(path)}_pred_labelIds.png"), ids_HW)
    return folder


def test_scores_of_generated_frames_equal_the_official_tool(generated_root: Path, tmp_path: Path) -> None:
    official_python()
    predictions = predict_anything(generated_root, tmp_path / "predictions")
    report = evaluate_predictions(predictions, generated_root, official=True)
    assert report.official is not None
    assert report.official.largest_difference <= 1e-9
    assert report.summary["mean_iou"] == pytest.approx(report.official.scores["mean_iou"], abs=1e-9)
    # The frames have objects, so that this compares more than classes.
    assert report.summary["mean_iiou"] is not None and report.summary["mean_iiou"] > 0
    assert report.summary["mean_category_iiou"] is not None
    assert report.frames == report.ground_truth_frames == 6


def test_official_comparison_reports_a_difference(
    generated_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    official_python()
    predictions = predict_anything(generated_root, tmp_path / "predictions")
    score = evaluate_predictions(predictions, generated_root).summary
    score["classes"]["road"] = 0.0
    files = {key_of(p): predictions / f"{key_of(p)}_pred_labelIds.png" for p in label_files(generated_root)}
    truth = official_evaluation.CityscapesGroundTruth(generated_root)
    comparison = official_evaluation.compare_with_official(files, truth, score, python=official_python())
    assert not comparison.agrees
    assert comparison.largest_difference == pytest.approx(comparison.scores["classes"]["road"])


def test_frames_without_instance_ids_have_no_iiou(generated_root: Path, tmp_path: Path) -> None:
    official_python()
    root = tmp_path / "data"
    shutil.copytree(generated_root / "gtFine", root / "gtFine")
    predictions = predict_anything(root, tmp_path / "predictions")
    next(root.rglob("*_instanceIds.png")).unlink()
    report = evaluate_predictions(predictions, root, official=True)
    assert report.summary["mean_iiou"] is None and report.summary["instance_classes"] == {}
    assert report.official is not None and report.official.agrees


def test_perfect_predictions_score_one(generated_root: Path) -> None:
    summary = evaluate_predictions(generated_root / "gtFine", generated_root).summary
    assert summary["mean_iou"] == summary["mean_category_iou"] == summary["mean_iiou"] == 1.0


@pytest.mark.parametrize("part", [".", "gtFine", "gtFine/val"])
def test_ground_truth_may_be_any_part_of_a_data_set(generated_root: Path, tmp_path: Path, part: str) -> None:
    predictions = predict_anything(generated_root, tmp_path)
    assert evaluate_predictions(predictions, generated_root / part).frames == 6


def test_names_of_any_ending_are_predictions_where_none_ends_in_label_ids(
    generated_root: Path, tmp_path: Path
) -> None:
    predictions = predict_anything(generated_root, tmp_path)
    expected = evaluate_predictions(predictions, generated_root).summary
    for path in sorted(predictions.iterdir()):
        path.rename(path.with_name(path.name.replace("_pred_labelIds", "_mynet")))
    assert evaluate_predictions(predictions, generated_root).summary == expected


def make_run(root: Path, run: Path) -> None:
    """A run folder as the cloud leaves it: each vehicle's test frames, and other pictures."""
    for path in label_files(root):
        vehicle = "vehicle-" + key_of(path).split("_")[0]
        ids_HW = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        label_HW = CITYSCAPES.to_train_ids(ids_HW)
        write_prediction(run / "predictions" / vehicle, key_of(path), label_HW, CITYSCAPES)
        write_prediction(run / "predictions_ood" / vehicle, key_of(path), label_HW, CITYSCAPES)
        overlay = run / "overlays" / vehicle
        overlay.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(overlay / f"{key_of(path)}.png"), np.zeros((4, 4, 3), np.uint8))


def test_run_folder_is_scored_vehicle_by_vehicle(
    generated_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(generated_root, tmp_path)
    (tmp_path / "result.json").write_text('{"dataset": "generated"}')
    assert run_evaluate(tmp_path, generated_root, None, False, None) == 0
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert content["frames"] == 6 and content["dataset"] == "cityscapes"
    assert len(content["vehicles"]) == 2 and set(content["vehicles"].values()) == {1.0}
    assert content["mean_iou"] == 1.0
    printed = capsys.readouterr().out
    assert "road" in printed and "local mIoU" in printed and "iIoU" in printed


def test_output_file_holds_strict_json_with_the_official_scores(generated_root: Path, tmp_path: Path) -> None:
    official_python()
    predictions = predict_anything(generated_root, tmp_path / "predictions")
    output = tmp_path / "new" / "scores.json"
    assert run_evaluate(predictions, generated_root, "cityscapes", True, output) == 0
    content = json.loads(output.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert content["official"]["largest_difference"] <= 1e-9
    assert not (predictions / "evaluation.json").exists()


def test_unpredicted_frames_are_left_out_and_counted(
    generated_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions = predict_anything(generated_root, tmp_path)
    sorted(predictions.iterdir())[0].unlink()
    run_evaluate(predictions, generated_root, None, False, None)
    assert "not counted: 1 labelled" in capsys.readouterr().out


@pytest.fixture
def tiny_camvid(tmp_path: Path) -> Path:
    """Two CamVid frames in the SegNet layout."""
    root = tmp_path / "camvid"
    for folder in ("train", "trainannot"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for stem in ("0001TP_006690", "0006R0_f00930"):
        cv2.imwrite(str(root / "train" / f"{stem}.png"), rng.integers(0, 255, (24, 32, 3), np.uint8))
        cv2.imwrite(str(root / "trainannot" / f"{stem}.png"), rng.integers(0, 12, (24, 32), np.uint8))
    return root


def test_camvid_predictions_are_scored_without_void(tiny_camvid: Path, tmp_path: Path) -> None:
    source = CamVidFrames(tiny_camvid)
    for ref in source.refs:
        label_HW = source.load_label(ref)
        # Where the ground truth is void, anything goes.
        prediction_HW = np.where(label_HW == VOID, 3, label_HW).astype(np.uint8)
        write_prediction(tmp_path / "predictions", ref.key, prediction_HW, CAMVID)
    report = evaluate_predictions(tmp_path / "predictions", tiny_camvid)
    assert report.dataset == "camvid" and report.frames == 2
    assert report.summary["mean_iou"] == 1.0 and report.summary["mean_iiou"] is None
    labelled = sum(int((source.load_label(ref) != VOID).sum()) for ref in source.refs)
    assert report.summary["pixels"] == labelled


def test_real_camvid_frames_score_as_their_confusion(camvid_root: Path, tmp_path: Path) -> None:
    source = CamVidFrames(camvid_root)
    everywhere_road = np.full((360, 480), 3, np.uint8)
    road = labelled = 0
    for ref in source.refs[::150]:
        label_HW = source.load_label(ref)
        road += int((label_HW == 3).sum())
        labelled += int((label_HW != VOID).sum())
        write_prediction(tmp_path, ref.key, everywhere_road, CAMVID)
    summary = evaluate_predictions(tmp_path, camvid_root).summary
    assert summary["classes"]["road"] == pytest.approx(road / labelled, abs=1e-12)
    assert summary["classes"]["sky"] == 0.0


def test_official_evaluation_of_camvid_is_refused(tiny_camvid: Path, tmp_path: Path) -> None:
    official_python()
    with pytest.raises(EvaluationError, match="only Cityscapes"):
        evaluate_predictions(tiny_camvid / "trainannot", tiny_camvid, official=True)


def test_official_tool_that_is_absent_is_named(
    generated_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "bare"
    venv.create(bare, symlinks=True)
    labels = generated_root / "gtFine"
    with pytest.raises(EvaluationError, match=r"bare/bin/python can't run the official evaluation: .*numpy"):
        evaluate_predictions(labels, generated_root, official=True, official_python=bare / "bin" / "python")
    with pytest.raises(EvaluationError, match="nowhere can't run the official evaluation: No such file"):
        evaluate_predictions(labels, generated_root, official=True, official_python=tmp_path / "nowhere")
    monkeypatch.setenv(VARIABLE, str(bare / "bin" / "python"))
    with pytest.raises(EvaluationError, match=r"packages of official\.txt"):
        evaluate_predictions(labels, generated_root, official=True)
    monkeypatch.delenv(VARIABLE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(official_choice, "__file__", str(tmp_path / "evaluation" / "official_python.py"))
    monkeypatch.setattr("sys.executable", str(bare / "bin" / "python"))
    with pytest.raises(EvaluationError, match=f"`make official` .* --official-python or in {VARIABLE}"):
        evaluate_predictions(labels, generated_root, official=True)


def _first(folder: Path) -> Path:
    return min(folder.glob("*.png"))


def _drop_ground_truth(predictions: Path) -> None:
    _first(predictions).rename(predictions / "atlantis_000000_000000_pred_labelIds.png")


def _resize(predictions: Path) -> None:
    cv2.imwrite(str(_first(predictions)), np.full((60, 80), 7, np.uint8))


def _unknown_id(predictions: Path) -> None:
    cv2.imwrite(str(_first(predictions)), np.full((120, 160), 77, np.uint8))


def _duplicate(predictions: Path) -> None:
    first = _first(predictions)
    (predictions / "again").mkdir()
    shutil.copy(first, predictions / "again" / first.name)


def _truncate(predictions: Path) -> None:
    first = _first(predictions)
    first.write_bytes(first.read_bytes()[:100])


def _colour(predictions: Path) -> None:
    cv2.imwrite(str(_first(predictions)), np.zeros((120, 160, 3), np.uint8))


def _train_ids(predictions: Path) -> None:
    for path in list(predictions.glob("*.png")):
        path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))


def _remove_all(predictions: Path) -> None:
    for path in predictions.glob("*.png"):
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_drop_ground_truth, r"1 of 6 predictions can't be matched: .*atlantis_000000_000000.* ground truth"),
        (_resize, r"1 of 6 .* is 80x60 pixels, but its ground truth is 160x120"),
        (_unknown_id, r"1 of 6 .* holds 77: not cityscapes label ids"),
        (_duplicate, r"1 of 7 .* predicts the same frame as"),
        (_truncate, r"1 of 6 .* not a readable image"),
        (_colour, r"1 of 6 .* expected a grey PNG of 8 or 16 bits .* got an RGB PNG"),
        (_train_ids, r"6 of 6 .* holds trainIds by its name.*; and 1 more"),
        (_remove_all, r"no predictions in .*: expected label images"),
    ],
)
def test_faulty_predictions_are_named_in_one_line(
    spoil: Callable[[Path], None], message: str, generated_root: Path, tmp_path: Path
) -> None:
    predictions = predict_anything(generated_root, tmp_path / "predictions")
    spoil(predictions)
    with pytest.raises(EvaluationError, match=message) as error:
        evaluate_predictions(predictions, generated_root)
    assert "\n" not in str(error.value)


def test_faulty_ground_truth_is_named_in_one_line(generated_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(generated_root / "gtFine", root / "gtFine")
    predictions = predict_anything(root, tmp_path / "predictions")
    broken = label_files(root)[0]
    cv2.imwrite(str(broken), np.full((120, 160), 255, np.uint8))
    with pytest.raises(EvaluationError, match=rf"1 of 6 .*{broken.name}.* 255 are not cityscapes ids"):
        evaluate_predictions(predictions, root)


@pytest.mark.parametrize(
    ("ground_truth", "dataset", "message"),
    [
        ("nowhere", None, "is not a folder"),
        ("empty", None, "no ground truth in .* or CamVid"),
        ("empty", "camvid", "no CamVid data"),
        ("empty", "kitti", "unknown data set 'kitti', expected one of: folder, cityscapes, camvid"),
    ],
)
def test_missing_ground_truth_is_named(
    ground_truth: str, dataset: str | None, message: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(Mistake, match=message):
        evaluate_predictions(tmp_path, tmp_path / ground_truth, dataset=dataset)


def test_missing_predictions_folder_is_named(generated_root: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"nowhere is not a folder"):
        evaluate_predictions(tmp_path / "nowhere", generated_root)


def test_damaged_result_of_a_run_is_named(generated_root: Path, tmp_path: Path) -> None:
    make_run(generated_root, tmp_path)
    (tmp_path / "result.json").write_text("[1, 2")
    with pytest.raises(EvaluationError, match="not a run's result"):
        evaluate_predictions(tmp_path, generated_root)
