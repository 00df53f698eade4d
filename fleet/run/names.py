"""Names of predictions, where the cloud was told the numbers of frames alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cloud_server.algorithms.base import PREDICTED
from edge_client.naming import number_name
from evaluation.predictions import prediction_name
from fleet.frames.allocation import Share
from protocol.messages import SPLITS


def name_predictions(run_folder: Path, shares: Mapping[str, Share]) -> None:
    """Give the predictions that are called by numbers the names that evaluation looks for.

    Those that have them already keep them: it may be done again.

    Raises:
        OSError: the folder can't be written.
    """
    for vehicle, share in shares.items():
        splits = share.splits()
        keys = [key for split in SPLITS for key in splits.get(split, ())]
        for folder in (run_folder / name / vehicle for name in PREDICTED.values()):
            if not folder.is_dir():
                continue
            for index, key in enumerate(keys):
                numbered = folder / prediction_name(number_name(index))
                if numbered.exists():
                    numbered.replace(folder / prediction_name(key))
