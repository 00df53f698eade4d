"""Pictures of a finished run: test frames beside their ground truth and the predictions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from datasets.frame import FrameSource
from evaluation.overlays import write_overlay
from evaluation.predictions import prediction_name, read_prediction
from fleet.frames.allocation import Share, evenly_spaced


def draw_overlays(
    source: FrameSource, shares: Mapping[str, Share], run_folder: Path, *, per_vehicle: int
) -> list[Path]:
    """Draw `overlays/<vehicle>/<frame>.png` for evenly spaced test frames of each vehicle, as it sees them.

    The pictures are made by the operator, who has the frames; the cloud never sees one.
    """
    refs = {ref.key: ref for ref in source.refs}
    paths = []
    for vehicle, share in shares.items():
        for key in evenly_spaced(share.test, per_vehicle):
            frame = source.load(refs[key])
            prediction_HW = read_prediction(
                run_folder / "predictions" / vehicle / prediction_name(key), source.label_space
            )
            height, width = frame.label_HW.shape
            size_WH = (width, height)
            image_HWC = np.asarray(
                cv2.resize(frame.image_HWC, size_WH, interpolation=cv2.INTER_AREA), np.uint8
            )
            if share.sight:
                image_HWC = share.sight.sight().apply(image_HWC, key)
            paths.append(run_folder / "overlays" / vehicle / f"{key}.png")
            write_overlay(paths[-1], image_HWC, frame.label_HW, prediction_HW, source.label_space)
    return paths
