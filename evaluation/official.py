"""Runs the official Cityscapes evaluation on the same files and says how far its scores are from ours."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.readers.cityscapes import INSTANCE_SUFFIX, LABEL_SUFFIX, CityscapesGroundTruth
from evaluation.errors import EvaluationError
from evaluation.official_python import MODULE, official_command
from evaluation.predictions import prediction_name
from evaluation.scores import ScoreTable

_RESULT_NAME = "resultPixelLevelSemanticLabeling.json"

_TOLERANCE = 1e-9
"""Largest difference that still counts as equal: both sides divide the same integers or nearly equal sums."""

# (ours: mean, scores), (official: mean, scores), whether they need instance ids.
_SAME_SCORES = (
    (("mean_iou", "classes"), ("averageScoreClasses", "classScores"), False),
    (("mean_category_iou", "categories"), ("averageScoreCategories", "categoryScores"), False),
    (("mean_iiou", "instance_classes"), ("averageScoreInstClasses", "classInstScores"), True),
    (
        ("mean_category_iiou", "instance_categories"),
        ("averageScoreInstCategories", "categoryInstScores"),
        True,
    ),
)


@dataclass(frozen=True, kw_only=True)
class OfficialComparison:
    """What the official tool says about the same predictions."""

    scores: dict[str, Any]
    """Laid out as `ScoreTable`; None where the official score is NaN."""
    largest_difference: float
    """Largest absolute difference of any score from ours; infinite where only one side has a score."""

    @property
    def agrees(self) -> bool:
        """Whether every score equals ours, up to rounding."""
        return self.largest_difference <= _TOLERANCE

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types (an infinite difference as None)."""
        difference = self.largest_difference if math.isfinite(self.largest_difference) else None
        return {"scores": self.scores, "largest_difference": difference}


def compare_with_official(
    predictions: Mapping[str, Path], ground_truth: CityscapesGroundTruth, summary: ScoreTable, *, python: Path
) -> OfficialComparison:
    """Run the official tool on `predictions` (by frame key) in a temporary folder and compare every score.

    `python` is that of `evaluation.official_python.find_official_python`.

    Raises:
        EvaluationError: the tool failed; the message has its last words.
        OSError: the temporary folder can't be written.
    """
    with tempfile.TemporaryDirectory(prefix="blackfleet-official-") as name:
        staging = Path(name)
        _stage(staging, predictions, ground_truth)
        official = _run(staging, python)
    with_instances = bool(summary["instance_classes"])
    scores = _as_summary(official, with_instances)
    pairs = _score_pairs(dict(summary), scores, with_instances)
    return OfficialComparison(
        scores=scores, largest_difference=max(_difference(ours, theirs) for ours, theirs in pairs)
    )


def _stage(staging: Path, predictions: Mapping[str, Path], ground_truth: CityscapesGroundTruth) -> None:
    (staging / "results").mkdir()
    (staging / "export").mkdir()
    for key, prediction in predictions.items():
        labels = staging / "gtFine" / "val" / key.split("_")[0]
        labels.mkdir(parents=True, exist_ok=True)
        _place(prediction, staging / "results" / prediction_name(key))
        _place(ground_truth.label_paths[key], labels / (key + LABEL_SUFFIX))
        instance_path = ground_truth.instance_path(key)
        # The tool insists on instance ids; label ids are valid ones, of crowds.
        _place(instance_path or ground_truth.label_paths[key], labels / (key + INSTANCE_SUFFIX))


def _place(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source.resolve())
    except OSError:
        shutil.copyfile(source, target)


def _run(staging: Path, python: Path) -> dict[str, Any]:
    environment = {
        **os.environ,
        "CITYSCAPES_DATASET": str(staging),
        "CITYSCAPES_RESULTS": str(staging / "results"),
        "CITYSCAPES_EXPORT_DIR": str(staging / "export"),
    }
    command = [*official_command(python), "-m", MODULE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    result = staging / "export" / _RESULT_NAME
    if done.returncode != 0 or not result.is_file():
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise EvaluationError(f"the official evaluation failed: {lines[-1] if lines else 'it said nothing'}")
    # Python's parser takes the bare NaN that the tool writes.
    content: dict[str, Any] = json.loads(result.read_text())
    return content


def _as_summary(official: Mapping[str, Any], with_instances: bool) -> dict[str, Any]:
    scores: dict[str, Any] = {}
    for (mean, group), (official_mean, official_group), needs_instances in _SAME_SCORES:
        skipped = needs_instances and not with_instances
        scores[mean] = None if skipped else _none_if_nan(official[official_mean])
        scores[group] = (
            {} if skipped else {name: _none_if_nan(score) for name, score in official[official_group].items()}
        )
    return scores


def _score_pairs(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], with_instances: bool
) -> Iterator[tuple[float | None, float | None]]:
    for (mean, group), _, needs_instances in _SAME_SCORES:
        if needs_instances and not with_instances:
            continue
        yield ours[mean], theirs[mean]
        # The official lists also have the ignored classes, always undefined.
        for name in {**ours[group], **theirs[group]}:
            yield ours[group].get(name), theirs[group].get(name)


def _difference(ours: float | None, theirs: float | None) -> float:
    if ours is None or theirs is None:
        return 0.0 if ours is theirs else math.inf
    return abs(ours - theirs)


def _none_if_nan(score: float) -> float | None:
    return None if math.isnan(score) else score
