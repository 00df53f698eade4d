"""Opens the true labels that predictions are compared with: by a data set's name, or as a folder looks."""

from __future__ import annotations

from pathlib import Path

from datasets.catalog import DATASETS, LABELLED, find_dataset
from datasets.ground_truth import GroundTruth
from datasets.readers.folder import DatasetMissing
from evaluation.errors import EvaluationError
from protocol.errors import SettingError


def open_ground_truth(folder: Path, dataset: str | None) -> GroundTruth:
    """Open the labels in `folder`; without the name of a `dataset`, as the folder looks.

    Raises:
        EvaluationError: the folder is missing, the data set is unknown or has no labels, or the folder looks
            like none of them.
        DatasetError: the labels are missing, incomplete or malformed.
    """
    if not folder.is_dir():
        raise EvaluationError(f"no ground truth: {folder} is not a folder")
    if dataset is not None:
        try:
            entry = find_dataset(dataset)
        except SettingError as error:
            raise EvaluationError(str(error)) from error
        if not entry.is_labelled:
            raise EvaluationError(f"data set {dataset} has no labels; expected one of: {', '.join(LABELLED)}")
        return entry.open_ground_truth(folder)
    expected: dict[str, str] = {}
    for name in LABELLED:
        try:
            return DATASETS[name].open_ground_truth(folder)
        except DatasetMissing as missing:
            expected.setdefault(missing.expected, DATASETS[name].title)
    looked_for = ", or ".join(f"{title}: {files}" for files, title in expected.items())
    raise EvaluationError(f"no ground truth in {folder}: expected {looked_for}")
