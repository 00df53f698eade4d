"""Scores of what a network predicts: on validation frames while it learns, on test frames before and after.

Legend: B frames, C channels, H W feature rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from cloud_server.algorithms.base import PREDICTED, Context, Scores
from cloud_server.desk.turns import Features
from cloud_server.events import Events
from cloud_server.schedule import Kind, Stage
from evaluation.latest import FRAMES_A_VEHICLE, evenly
from evaluation.predictions import write_prediction
from evaluation.scores import ConfusionMatrix


def validation_miou(
    context: Context,
    vehicle: str,
    val: Features,
    predict: Callable[[NDArray[np.float32], tuple[int, int]], NDArray[np.uint8]],
    *,
    shown: Stage | None = None,
) -> float:
    """mIoU on a vehicle's validation frames at the encoder's input size; 0 where it is undefined.

    A few of the predictions are kept for whoever looks on, as made in the stage `shown`.
    """
    label_BHW = context.labels.batch(vehicle, val.indices)
    height, width = label_BHW.shape[1:]
    matrix = ConfusionMatrix(context.label_space)
    prediction_BHW = predict(val.features_BCHW, (height, width))
    for label_HW, prediction_HW in zip(label_BHW, prediction_BHW, strict=True):
        matrix.add(label_HW, prediction_HW)
    if shown is not None:
        few = evenly(len(val.indices), FRAMES_A_VEHICLE)
        context.latest.keep_predictions(
            vehicle,
            shown.number,
            "val",
            ((*context.labels.full(vehicle, val.indices[place]), prediction_BHW[place]) for place in few),
        )
    score = matrix.mean_iou()
    return score if math.isfinite(score) else 0.0


def evaluate_test_frames(
    context: Context,
    scores: Scores,
    stage: Stage,
    vehicle: str,
    uploads: Mapping[str, Features],
    predict: Callable[[NDArray[np.float32], tuple[int, int]], NDArray[np.uint8]],
) -> None:
    """Score a vehicle's uploads of an evaluation stage and write the final predictions of its own test frames
    and of the fleet's test split; at the start a few are kept for whoever looks on.

    `predict` maps (features_BCHW, (height, width)) to trainIds at that size.
    """
    final = stage.kind is Kind.FINAL
    for split, features in uploads.items():
        matrix = ConfusionMatrix(context.label_space)
        few = evenly(len(features.indices), FRAMES_A_VEHICLE) if split == "test" and not final else ()
        shown = []
        for position, index in enumerate(features.indices):
            context.check_stop()
            key, label_HW = context.labels.full(vehicle, index)
            height, width = label_HW.shape
            [prediction_HW] = predict(features.features_BCHW[position : position + 1], (height, width))
            matrix.add(label_HW, prediction_HW)
            if final and split in PREDICTED:
                folder = context.run_folder / PREDICTED[split] / vehicle
                write_prediction(folder, key, prediction_HW, context.label_space)
            if position in few:
                shown.append((key, label_HW, prediction_HW))
        if shown:
            context.latest.keep_predictions(vehicle, stage.number, split, shown)
        note_score(scores, context.events, stage, vehicle, split, matrix, frames=len(features.indices))


def note_score(
    scores: Scores,
    events: Events,
    stage: Stage,
    vehicle: str,
    split: str,
    matrix: ConfusionMatrix,
    *,
    frames: int,
) -> None:
    """Keep and tell what an evaluation stage has found on a split of a vehicle, over so many `frames`."""
    scores.of(stage.kind, split)[vehicle] = matrix
    miou = matrix.mean_iou()
    events.event(
        "evaluation",
        stage=stage.number,
        vehicle=vehicle,
        split=split,
        kind=stage.kind.value,
        miou=miou,
        frames=frames,
    )
    if split == "fleet":
        events.scalar(f"fleet_miou/{vehicle}", miou, stage.number)
