"""How good predictions are: class IoU, category IoU and instance-weighted iIoU, as Cityscapes defines them.

Shapes: H height, W width. Scores are fractions from 0 to 1, NaN where undefined; `summarize` turns NaN into
None.
Source: Cordts et al., "The Cityscapes Dataset", CVPR 2016, section 4.1, and the behaviour of
cityscapesscripts 2.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from datasets.catalog import label_space
from datasets.labels import VOID, LabelSpace
from evaluation.errors import EvaluationError
from evaluation.instances import InstanceScores
from evaluation.pixel_counts import categories_of, joint_histogram, mean_of_defined, ratio

__all__ = ["ConfusionMatrix", "InstanceScores", "ScoreTable", "summarize"]


class ConfusionMatrix:
    """Pixel counts of ground truth against prediction, summed over all frames of a split.

    `counts` is int64 [num_classes, num_classes + 1]: rows are the true trainId, columns the predicted one;
    the last column counts predictions of no evaluated class. Pixels whose ground truth is void are not
    counted at all.
    """

    def __init__(self, label_space: LabelSpace) -> None:
        self.label_space = label_space
        self.counts: NDArray[np.int64] = np.zeros(
            (label_space.num_classes, label_space.num_classes + 1), np.int64
        )

    def add(self, label_HW: NDArray[np.uint8], prediction_HW: NDArray[np.uint8]) -> None:
        """Count one frame, both arguments as uint8 trainIds of the same shape.

        Void in the ground truth is skipped. Void in the prediction is a miss of the true class and a false
        positive of none: that is how the official tool treats predicted ids which it ignores in the ground
        truth.

        Raises:
            ValueError: the shapes differ, the type is not uint8, or a value is neither a trainId nor void.
        """
        histogram = joint_histogram(label_HW, prediction_HW)
        num_classes = self.label_space.num_classes
        for what, pixels in (("ground truth", histogram.sum(axis=1)), ("prediction", histogram.sum(axis=0))):
            unknown = np.flatnonzero(pixels[num_classes:VOID]) + num_classes
            if unknown.size:
                raise ValueError(
                    f"{what} holds {', '.join(map(str, unknown))}, expected {self.label_space.name} trainIds"
                    f" 0 to {num_classes - 1} or {VOID} for void"
                )
        self.counts[:, :num_classes] += histogram[:num_classes, :num_classes]
        self.counts[:, num_classes] += histogram[:num_classes, VOID]

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of `other`, as if its frames had been added here.

        Raises:
            ValueError: `other` counts another data set's classes.
        """
        if other.label_space != self.label_space:
            raise ValueError(
                f"cannot merge {other.label_space.name} counts into {self.label_space.name} counts"
            )
        self.counts += other.counts

    @property
    def pixels(self) -> int:
        """How many pixels were counted, that is the pixels whose ground truth is not void."""
        return int(self.counts.sum())

    def class_iou(self) -> NDArray[np.float64]:
        """Return float64 [num_classes]: TP / (TP + FP + FN), NaN for a class that never occurred."""
        hits = np.diagonal(self.counts)
        union = self.counts.sum(axis=1) + self.counts[:, :-1].sum(axis=0) - hits
        return ratio(hits, union)

    def mean_iou(self) -> float:
        """Return the mean of the class IoUs that are defined, NaN if none is.

        As in the official tool, a class that was never labelled but predicted somewhere counts with 0; a
        class that was neither labelled nor predicted on any counted pixel is left out.
        """
        return mean_of_defined(self.class_iou())

    def category_iou(self) -> dict[str, float]:
        """Return the IoU of each category: a mix-up inside one category is no mistake."""
        scores = {}
        for category, train_ids in categories_of(self.label_space).items():
            hits = self.counts[np.ix_(train_ids, train_ids)].sum()
            union = self.counts[train_ids, :].sum() + self.counts[:, train_ids].sum() - hits
            scores[category] = float(ratio(hits, union))
        return scores

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` needs, made of JSON types."""
        return {"label_space": self.label_space.name, "counts": self.counts.tolist()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], classes: LabelSpace | None = None) -> ConfusionMatrix:
        """Rebuild a matrix from `to_dict`; `classes` are those that it counted, default: by their name.

        Raises:
            SettingError: the label space is unknown.
            EvaluationError: the counts have another shape or are negative.
        """
        matrix = cls(classes or label_space(str(content.get("label_space"))))
        try:
            counts = np.asarray(content.get("counts"))
        except ValueError as error:  # rows of different lengths
            raise EvaluationError(
                f"confusion matrix must be {matrix.counts.shape} counts: {error}"
            ) from error
        if counts.shape != matrix.counts.shape or counts.dtype.kind not in "iu" or counts.min() < 0:
            raise EvaluationError(
                f"confusion matrix must be {matrix.counts.shape} counts, got {counts.dtype} {counts.shape}"
            )
        matrix.counts[:] = counts
        return matrix


class ScoreTable(TypedDict):
    """The scores of one evaluation, safe to write as strict JSON: None where a score is undefined."""

    mean_iou: float | None
    classes: dict[str, float | None]
    mean_category_iou: float | None
    categories: dict[str, float | None]
    mean_iiou: float | None
    instance_classes: dict[str, float | None]
    mean_category_iiou: float | None
    instance_categories: dict[str, float | None]
    pixels: int


def summarize(confusion: ConfusionMatrix, instances: InstanceScores | None = None) -> ScoreTable:
    """Return every score of one evaluation; without `instances` the iIoU entries are None and empty."""
    names = confusion.label_space.train_names
    class_iou = confusion.class_iou()
    category_iou = confusion.category_iou()
    instance_classes: dict[str, float] = {}
    instance_categories: dict[str, float] = {}
    if instances is not None:
        class_iiou = instances.class_iiou()
        instance_classes = {names[i]: float(class_iiou[i]) for i in instances.class_train_ids}
        instance_categories = instances.category_iiou()
    return ScoreTable(
        mean_iou=_none_if_nan(confusion.mean_iou()),
        classes=_none_for_nan(dict(zip(names, class_iou.tolist(), strict=True))),
        mean_category_iou=_none_if_nan(mean_of_defined(list(category_iou.values()))),
        categories=_none_for_nan(category_iou),
        mean_iiou=_none_if_nan(mean_of_defined(list(instance_classes.values()))),
        instance_classes=_none_for_nan(instance_classes),
        mean_category_iiou=_none_if_nan(mean_of_defined(list(instance_categories.values()))),
        instance_categories=_none_for_nan(instance_categories),
        pixels=confusion.pixels,
    )


def _none_if_nan(score: float) -> float | None:
    return None if np.isnan(score) else float(score)


def _none_for_nan(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _none_if_nan(score) for name, score in scores.items()}
