"""Scores against the official Cityscapes evaluation on the same files, and their arithmetic."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from official_tool import run_official

from datasets.labels import CAMVID, CITYSCAPES, VOID
from evaluation.errors import EvaluationError
from evaluation.official_python import MODULE
from evaluation.scores import ConfusionMatrix, InstanceScores, summarize
from protocol.errors import Mistake

TOLERANCE = 1e-9


def draw_scene(
    rng: np.random.Generator, *, height: int = 96, width: int = 128, absent_ids: tuple[int, ...] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping boxes as label ids (uint8) and instance ids (int32), in all the official forms."""
    ids = [i for i in range(34) if i not in absent_ids]
    ids_HW = np.zeros((height, width), np.uint8)
    instance_HW = np.zeros((height, width), np.int32)
    objects: dict[int, int] = {}
    for _ in range(60):
        label_id = int(rng.choice(ids))
        top, left = int(rng.integers(0, height)), int(rng.integers(0, width))
        box = np.s_[top : top + int(rng.integers(1, 40)), left : left + int(rng.integers(1, 50))]
        instance = label_id
        # A class with instances appears as single objects, now and then as a crowd that has a plain id.
        if 24 <= label_id <= 33 and rng.random() < 0.8:
            instance = label_id * 1000 + objects.setdefault(label_id, 0)
            objects[label_id] += 1
        ids_HW[box], instance_HW[box] = label_id, instance
    return ids_HW, instance_HW


def disturb(rng: np.random.Generator, ids_HW: np.ndarray, share: float) -> np.ndarray:
    """A prediction that is right except for a share of the pixels and one box, which hold any ids."""
    prediction = ids_HW.copy()
    wrong = rng.random(ids_HW.shape) < share
    prediction[wrong] = rng.integers(0, 34, int(wrong.sum()))
    prediction[10:30, 10:60] = rng.choice([29, 26, 7, 0])
    return prediction


def official_scores(folder: Path, scenes: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> dict[str, Any]:
    predictions, labels = [], []
    for number, (ids_HW, instance_HW, prediction_HW) in enumerate(scenes):
        stem = str(folder / f"town_000000_{number:06d}")
        for suffix, image in (
            ("_gtFine_labelIds.png", ids_HW),
            ("_gtFine_instanceIds.png", instance_HW.astype(np.uint16)),
            ("_pred_labelIds.png", prediction_HW),
        ):
            assert cv2.imwrite(stem + suffix, image)
        labels.append(stem + "_gtFine_labelIds.png")
        predictions.append(stem + "_pred_labelIds.png")
    code = (
        f"import json, sys, {MODULE} as tool\n"
        "predictions, labels = json.loads(sys.argv[1])\n"
        "tool.args.quiet, tool.args.JSONOutput = True, False\n"
        "print(json.dumps(tool.evaluateImgLists(predictions, labels, tool.args), default=vars))"
    )
    scores: dict[str, Any] = run_official(code, json.dumps([predictions, labels]))
    return scores


def our_scores(scenes: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> dict[str, Any]:
    confusion, instances = ConfusionMatrix(CITYSCAPES), InstanceScores(CITYSCAPES)
    for ids_HW, instance_HW, prediction_HW in scenes:
        confusion.add(CITYSCAPES.to_train_ids(ids_HW), CITYSCAPES.to_train_ids(prediction_HW))
        instances.add(ids_HW, prediction_HW, instance_HW)
    return dict(summarize(confusion, instances))


def assert_same_scores(ours: dict[str, Any], official: dict[str, Any]) -> None:
    def check(mine: float | None, theirs: float, what: str) -> None:
        if math.isnan(theirs):
            assert mine is None, what
        else:
            assert mine == pytest.approx(theirs, abs=TOLERANCE, rel=0), what

    for name, theirs in official["classScores"].items():
        check(ours["classes"].get(name), theirs, name)
    for name, theirs in official["classInstScores"].items():
        check(ours["instance_classes"].get(name), theirs, name)
    for name, theirs in official["categoryScores"].items():
        check(ours["categories"].get(name), theirs, name)
    for name, theirs in official["categoryInstScores"].items():
        check(ours["instance_categories"].get(name), theirs, name)
    check(ours["mean_iou"], official["averageScoreClasses"], "mean")
    check(ours["mean_category_iou"], official["averageScoreCategories"], "mean of categories")
    check(ours["mean_iiou"], official["averageScoreInstClasses"], "mean of instance scores")
    check(ours["mean_category_iiou"], official["averageScoreInstCategories"], "mean of instance categories")


@pytest.mark.parametrize("seed", range(6))
def test_scores_on_random_scenes_equal_the_official_tool(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    # Odd seeds leave out train and its category mates in the ground truth, though they are still predicted.
    absent_ids = (31, 23, 28) if seed % 2 else ()
    scenes = []
    for share in (0.05, 0.4, 0.95):
        ids_HW, instance_HW = draw_scene(rng, absent_ids=absent_ids)
        scenes.append((ids_HW, instance_HW, disturb(rng, ids_HW, share)))
    assert_same_scores(our_scores(scenes), official_scores(tmp_path, scenes))


def test_scores_with_few_classes_present_equal_the_official_tool(tmp_path: Path) -> None:
    """Road, sky, ignored ids and one crowd: most classes and categories are undefined."""
    ids_HW = np.full((40, 60), 7, np.uint8)
    ids_HW[:10] = 23
    ids_HW[10:12] = 9  # parking: ignored in evaluation, category flat
    ids_HW[30:, :20] = 26
    instance_HW = ids_HW.astype(np.int32)  # the car is a crowd: no single object
    prediction_HW = ids_HW.copy()
    prediction_HW[5:20, 30:50] = 29  # caravan: ignored as ground truth, part of the category vehicle
    prediction_HW[35:, :5] = 0
    scenes = [(ids_HW, instance_HW, prediction_HW)]
    ours = our_scores(scenes)
    assert_same_scores(ours, official_scores(tmp_path, scenes))
    assert ours["classes"]["train"] is None
    # A crowd carries no weight: no hit, no miss, and no car was predicted elsewhere.
    assert ours["instance_classes"]["car"] is None


def test_scores_with_only_void_ground_truth_equal_the_official_tool(tmp_path: Path) -> None:
    ids_HW = np.full((20, 30), 3, np.uint8)
    scenes = [(ids_HW, ids_HW.astype(np.int32), np.full((20, 30), 7, np.uint8))]
    ours = our_scores(scenes)
    assert_same_scores(ours, official_scores(tmp_path, scenes))
    assert ours["mean_iou"] is None and ours["pixels"] == 0


def test_small_and_large_object_weigh_the_same_in_iiou() -> None:
    ids_HW = np.full((100, 100), 7, np.uint8)
    instance_HW = ids_HW.astype(np.int32)
    ids_HW[:50, :50], instance_HW[:50, :50] = 26, 26000
    ids_HW[90:, 90:], instance_HW[90:, 90:] = 26, 26001
    prediction_HW = ids_HW.copy()
    prediction_HW[90:, 90:] = 7  # the small car is missed
    instances = InstanceScores(CITYSCAPES)
    instances.add(ids_HW, prediction_HW, instance_HW)
    assert instances.class_iiou()[13] == pytest.approx(0.5)


def test_perfect_prediction_scores_one() -> None:
    ids_HW, instance_HW = draw_scene(np.random.default_rng(3))
    scores = our_scores([(ids_HW, instance_HW, ids_HW)])
    for mean in ("mean_iou", "mean_category_iou", "mean_iiou", "mean_category_iiou"):
        assert scores[mean] == 1.0
    assert {iou for iou in scores["classes"].values() if iou is not None} == {1.0}


def test_void_ground_truth_is_not_counted() -> None:
    confusion = ConfusionMatrix(CAMVID)
    label_HW = np.array([[0, 0, VOID, VOID]], np.uint8)
    confusion.add(label_HW, np.array([[0, 0, 3, 0]], np.uint8))
    assert confusion.pixels == 2
    assert confusion.class_iou()[0] == 1.0
    assert np.isnan(confusion.class_iou()[3])


def test_void_prediction_is_a_miss_and_no_false_positive() -> None:
    confusion = ConfusionMatrix(CAMVID)
    confusion.add(np.array([[0, 0, 1, 1]], np.uint8), np.array([[0, VOID, 1, 1]], np.uint8))
    assert confusion.class_iou()[:2].tolist() == [0.5, 1.0]
    assert confusion.mean_iou() == 0.75
    assert confusion.counts[0, -1] == 1


def test_class_predicted_but_never_labelled_counts_with_zero() -> None:
    confusion = ConfusionMatrix(CAMVID)
    confusion.add(np.array([[0, 0]], np.uint8), np.array([[0, 5]], np.uint8))
    assert confusion.class_iou()[[0, 5]].tolist() == [0.5, 0.0]
    assert confusion.mean_iou() == 0.25


def test_camvid_summary_has_no_instance_scores() -> None:
    confusion = ConfusionMatrix(CAMVID)
    label_HW = np.arange(11, dtype=np.uint8).reshape(1, 11)
    confusion.add(label_HW, label_HW)
    scores = summarize(confusion)
    assert scores["mean_iou"] == 1.0
    assert list(scores["classes"]) == list(CAMVID.train_names)
    assert scores["mean_iiou"] is None and scores["instance_classes"] == {}
    assert "void" not in scores["categories"]


label_maps = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).choice(np.r_[0:11, VOID].astype(np.uint8), size=(2, 5, 7))
)


@settings(max_examples=40, deadline=None)
@given(st.lists(label_maps, min_size=1, max_size=6), st.integers(0, 6))
def test_merging_parts_equals_adding_all(frames: list[np.ndarray], cut: int) -> None:
    everything, head, tail = (ConfusionMatrix(CAMVID) for _ in range(3))
    for index, (label_HW, prediction_HW) in enumerate(frames):
        everything.add(label_HW, prediction_HW)
        (head if index < cut else tail).add(label_HW, prediction_HW)
    tail.merge(head)
    assert np.array_equal(tail.counts, everything.counts)
    assert json.dumps(summarize(tail), allow_nan=False) == json.dumps(summarize(everything), allow_nan=False)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4), st.integers(0, 4))
def test_merging_instance_parts_equals_adding_all(seeds: list[int], cut: int) -> None:
    everything, head, tail = (InstanceScores(CITYSCAPES) for _ in range(3))
    for index, seed in enumerate(seeds):
        rng = np.random.default_rng(seed)
        ids_HW, instance_HW = draw_scene(rng, height=40, width=64)
        prediction_HW = disturb(rng, ids_HW, 0.3)
        everything.add(ids_HW, prediction_HW, instance_HW)
        (head if index < cut else tail).add(ids_HW, prediction_HW, instance_HW)
    tail.merge(head)
    np.testing.assert_allclose(tail.class_iiou(), everything.class_iiou(), rtol=1e-12)
    np.testing.assert_allclose(
        list(tail.category_iiou().values()), list(everything.category_iiou().values()), rtol=1e-12
    )


def test_counts_survive_json() -> None:
    rng = np.random.default_rng(0)
    ids_HW, instance_HW = draw_scene(rng)
    prediction_HW = disturb(rng, ids_HW, 0.3)
    confusion, instances = ConfusionMatrix(CITYSCAPES), InstanceScores(CITYSCAPES)
    confusion.add(CITYSCAPES.to_train_ids(ids_HW), CITYSCAPES.to_train_ids(prediction_HW))
    instances.add(ids_HW, prediction_HW, instance_HW)
    again = ConfusionMatrix.from_dict(json.loads(json.dumps(confusion.to_dict(), allow_nan=False)))
    instances_again = InstanceScores.from_dict(json.loads(json.dumps(instances.to_dict(), allow_nan=False)))
    assert np.array_equal(again.counts, confusion.counts)
    assert summarize(again, instances_again) == summarize(confusion, instances)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "unknown label space"),
        ({"label_space": "camvid", "counts": [[1]]}, "must be"),
        ({"label_space": "camvid", "counts": (-np.ones((11, 12), int)).tolist()}, "must be"),
        ({"label_space": "camvid", "counts": np.full((11, 12), 0.5).tolist()}, "must be"),
    ],
)
def test_malformed_counts_are_refused(content: dict[str, Any], message: str) -> None:
    with pytest.raises(Mistake, match=message):
        ConfusionMatrix.from_dict(content)


def test_instance_sums_that_are_not_finite_are_refused() -> None:
    content = InstanceScores(CITYSCAPES).to_dict()
    content["classes"][0][0] = float("nan")
    with pytest.raises(EvaluationError, match="finite"):
        InstanceScores.from_dict(content)


@pytest.mark.parametrize(
    ("label", "prediction", "message"),
    [
        (np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), "one shape"),
        (np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.int64), "uint8"),
        (np.full((2, 3), 11, np.uint8), np.zeros((2, 3), np.uint8), "ground truth holds 11"),
        (np.zeros((2, 3), np.uint8), np.full((2, 3), 254, np.uint8), "prediction holds 254"),
    ],
)
def test_frame_that_does_not_fit_is_refused(label: np.ndarray, prediction: np.ndarray, message: str) -> None:
    confusion = ConfusionMatrix(CAMVID)
    with pytest.raises(ValueError, match=message):
        confusion.add(label, prediction)
    assert confusion.pixels == 0


@pytest.mark.parametrize("instance", [7001, 34000, 300_000])
def test_instance_id_of_a_class_without_instances_is_refused(instance: int) -> None:
    ids_HW = np.full((4, 4), 7, np.uint8)
    with pytest.raises(EvaluationError, match=f"instance id {instance}"):
        InstanceScores(CITYSCAPES).add(ids_HW, ids_HW, np.full((4, 4), instance, np.int32))


def test_counts_of_another_data_set_are_not_merged() -> None:
    with pytest.raises(ValueError, match="cannot merge cityscapes"):
        ConfusionMatrix(CAMVID).merge(ConfusionMatrix(CITYSCAPES))


def test_metrics_import_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, evaluation.scores, evaluation.overlays; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_average_sizes_equal_the_official_table() -> None:
    from evaluation.instances import AVERAGE_INSTANCE_PIXELS

    official = run_official(f"import json, {MODULE} as tool; print(json.dumps(tool.args.avgClassSize))")
    for name, pixels in AVERAGE_INSTANCE_PIXELS.items():
        assert pixels == official[name]
