"""Instance-weighted IoU (iIoU): every object of a class weighs the same, whatever its size in pixels.

Shapes: H height, W width. Works on label ids, not trainIds: a category such as "vehicle" also holds classes
that have no trainId (caravan, trailer), and predicting one of them for a car is right for the category.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.catalog import label_space
from datasets.labels import UNKNOWN_ID, VOID, LabelSpace
from evaluation.errors import EvaluationError
from evaluation.pixel_counts import joint_histogram, ratio

AVERAGE_INSTANCE_PIXELS: Mapping[str, float] = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}
"""Mean object size in the 2048x1024 training frames of Cityscapes, constants of the official evaluation.

They are part of the definition and hold at any frame size: on smaller frames false positives weigh less.
"""

_FIRST_INSTANCE = 1001
"""Ids up to 1000 are plain label ids: crowd regions and classes without objects, which carry no weight."""


def are_weighted(label_space: LabelSpace) -> bool:
    """Whether a mean object size is known for each class with instances, and there are such classes."""
    names = [c.name for c in label_space.trained_classes if c.has_instances]
    return bool(names) and all(name in AVERAGE_INSTANCE_PIXELS for name in names)


class InstanceScores:
    """Weighted hits and misses of objects, and plain false positives, summed over all frames of a split.

    A pixel of an object weighs (mean object size of its class) / (size of this object in pixels). A false
    positive has no true object and weighs 1. iIoU = hits / (hits + misses + false positives).
    """

    def __init__(
        self, label_space: LabelSpace, average_instance_pixels: Mapping[str, float] = AVERAGE_INSTANCE_PIXELS
    ) -> None:
        """Start from nothing.

        Raises:
            ValueError: a class with instances has no mean object size.
        """
        self.label_space = label_space
        scored = [c for c in label_space.trained_classes if c.has_instances]
        unweighted = [c.name for c in scored if c.name not in average_instance_pixels]
        if unweighted:
            raise ValueError(
                f"no average object size for the {label_space.name} classes {', '.join(unweighted)}"
            )
        self.class_train_ids: tuple[int, ...] = tuple(c.train_id for c in scored)
        self._size_of_id = np.zeros(256)
        for c in scored:
            self._size_of_id[c.label_id] = average_instance_pixels[c.name]
        self._skipped_ids = {c.label_id for c in label_space.classes if c.ignore_in_eval}

        self.categories = _instance_categories(label_space)
        self._category_of_id = np.full(256, -1, np.int64)
        for index, ids in enumerate(self.categories.values()):
            self._category_of_id[ids] = index
        # Rows: weighted hits, weighted misses, false positives.
        self._classes = np.zeros((3, label_space.num_classes))
        self._categories = np.zeros((3, len(self.categories)))

    def add(
        self, ids_HW: NDArray[np.uint8], prediction_ids_HW: NDArray[np.uint8], instance_HW: NDArray[Any]
    ) -> None:
        """Count one frame: truth and prediction as uint8 label ids, instances as Cityscapes instance ids.

        Raises:
            EvaluationError: an id is not in the label table.
            ValueError: shapes differ, or a type is wrong.
        """
        histogram = joint_histogram(ids_HW, prediction_ids_HW)
        if instance_HW.shape != ids_HW.shape or instance_HW.dtype.kind not in "iu":
            raise ValueError(
                f"instance ids must be integers of shape {ids_HW.shape},"
                f" got {instance_HW.dtype} {instance_HW.shape}"
            )
        known = self.label_space.id_to_train_id != UNKNOWN_ID
        for what, pixels in (("ground truth", histogram.sum(axis=1)), ("prediction", histogram.sum(axis=0))):
            unknown = np.flatnonzero((pixels > 0) & ~known)
            if unknown.size:
                raise EvaluationError(
                    f"{what} holds {', '.join(map(str, unknown))}: not {self.label_space.name} label ids"
                )
        self._add_objects(prediction_ids_HW, instance_HW)
        self._add_false_positives(histogram)

    def _add_objects(self, prediction_ids_HW: NDArray[np.uint8], instance_HW: NDArray[Any]) -> None:
        on_object = instance_HW >= _FIRST_INSTANCE
        instances, object_P = np.unique(instance_HW[on_object], return_inverse=True)
        if not instances.size:
            return
        predicted_P = prediction_ids_HW[on_object]
        true_id = instances.astype(np.int64) // 1000
        self._check_instances(instances, true_id)

        sizes = np.bincount(object_P)
        weights = self._size_of_id[true_id] / sizes
        hits = np.bincount(object_P, weights=predicted_P == true_id[object_P], minlength=instances.size)
        scored = weights > 0
        train_ids = self.label_space.id_to_train_id[true_id[scored]]
        np.add.at(self._classes[0], train_ids, (hits * weights)[scored])
        np.add.at(self._classes[1], train_ids, ((sizes - hits) * weights)[scored])

        category = self._category_of_id[true_id]
        same_category = self._category_of_id[predicted_P] == category[object_P]
        hits = np.bincount(object_P, weights=same_category, minlength=instances.size)
        scored &= category >= 0
        np.add.at(self._categories[0], category[scored], (hits * weights)[scored])
        np.add.at(self._categories[1], category[scored], ((sizes - hits) * weights)[scored])

    def _check_instances(self, instances: NDArray[Any], true_id: NDArray[np.int64]) -> None:
        for instance, label_id in zip(instances.tolist(), true_id.tolist(), strict=True):
            if label_id in self._skipped_ids:
                continue
            if label_id > 255 or self._size_of_id[label_id] == 0:
                raise EvaluationError(
                    f"instance id {instance} is of label id {label_id},"
                    f" which is no {self.label_space.name} class with instances"
                )

    def _add_false_positives(self, histogram: NDArray[np.int64]) -> None:
        id_to_train_id = self.label_space.id_to_train_id
        counted = (id_to_train_id != VOID) & (id_to_train_id != UNKNOWN_ID)
        for c in self.label_space.trained_classes:
            others = counted & (np.arange(256) != c.label_id)
            self._classes[2, c.train_id] += histogram[others, c.label_id].sum()
        for index, ids in enumerate(self.categories.values()):
            others = counted & (self._category_of_id != index)
            self._categories[2, index] += histogram[others][:, ids].sum()

    def merge(self, other: InstanceScores) -> None:
        """Add the sums of `other`, as if its frames had been added here (up to rounding).

        Raises:
            ValueError: `other` counts another data set's classes.
        """
        if other.label_space != self.label_space:
            raise ValueError(
                f"cannot merge {other.label_space.name} scores into {self.label_space.name} scores"
            )
        self._classes += other._classes
        self._categories += other._categories

    def class_iiou(self) -> NDArray[np.float64]:
        """Return float64 [num_classes]; NaN for classes without instances or that never occurred."""
        scores: NDArray[np.float64] = np.full(self.label_space.num_classes, np.nan)
        scored = list(self.class_train_ids)
        scores[scored] = ratio(self._classes[0], self._classes.sum(axis=0))[scored]
        return scores

    def category_iiou(self) -> dict[str, float]:
        """Return the iIoU of each category made of classes with instances only (human, vehicle)."""
        scores = ratio(self._categories[0], self._categories.sum(axis=0))
        return dict(zip(self.categories, scores.tolist(), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` needs, made of JSON types."""
        return {
            "label_space": self.label_space.name,
            "classes": self._classes.tolist(),
            "categories": self._categories.tolist(),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], classes: LabelSpace | None = None) -> InstanceScores:
        """Rebuild scores from `to_dict`; `classes` are those that it counted, default: by their name.

        Raises:
            SettingError: the label space is unknown.
            EvaluationError: the sums have another shape, are negative or not finite.
        """
        scores = cls(classes or label_space(str(content.get("label_space"))))
        for name, target in (("classes", scores._classes), ("categories", scores._categories)):
            sums = np.asarray(content.get(name))
            numeric = sums.dtype.kind in "iuf"
            if sums.shape != target.shape or not numeric or not np.isfinite(sums).all() or (sums < 0).any():
                raise EvaluationError(
                    f"instance scores: {name} must be {target.shape} finite sums, got {sums.shape}"
                )
            target[:] = sums
        return scores


def _instance_categories(label_space: LabelSpace) -> dict[str, list[int]]:
    """Label ids of each category in which every class that has an id has instances."""
    ids: dict[str, list[int]] = {}
    mixed = set()
    for c in label_space.classes:
        if c.label_id < 0:
            continue
        ids.setdefault(c.category, []).append(c.label_id)
        if not c.has_instances:
            mixed.add(c.category)
    return {category: members for category, members in ids.items() if category not in mixed}
