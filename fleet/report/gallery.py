"""Test frames for a report: what the vehicle sees, the ground truth, and every algorithm's prediction."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.divided import open_frames
from datasets.frame import FrameRef, FrameSource, resize_frame
from datasets.labels import VOID, LabelSpace
from evaluation.predictions import PredictionError, prediction_name, read_prediction
from evaluation.scores import ConfusionMatrix
from fleet.errors import OperatorError
from fleet.frames.allocation import data_folder, evenly_spaced, vehicle_sight
from fleet.report.data import ReportData, Run, read_partition
from fleet.run.folder import SCENARIO_NAME
from fleet.scenario import load_scenario, parse_image_size
from fleet.show.encoded import encoded, size_within
from protocol.errors import MENDABLE

_FRAMES_A_VEHICLE = 3
_MOST_PICTURES = 260
_BUDGET_BYTES = 2_400_000
"""Of all pictures together, before base64 makes them a third larger."""
_WIDTHS_PX = (384, 320, 256, 192, 128)
"""Tried in this order until the pictures fit the budget."""
_JPEG_QUALITY = 80


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture on the page."""

    uri: str
    """`data:` URI."""
    width: int
    height: int
    miou: float | None = None
    """Of a prediction: mean IoU over the classes of this one frame."""


@dataclass(frozen=True, kw_only=True)
class FramePictures:
    """One test frame."""

    key: str
    frame: Picture
    ground_truth: Picture
    predictions: dict[str, Picture | None]
    """By algorithm; None where there is no prediction that fits."""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """What of the frames could be shown."""

    vehicles: dict[str, list[FramePictures]]
    classes: tuple[str, ...]
    """Names of the classes that occur in any of the label pictures."""
    seed: int | None
    """Of the runs whose predictions are shown."""
    missing: str | None
    """Why there is nothing to show; None if there is."""


@dataclass(frozen=True, kw_only=True)
class _Shot:
    """One test frame before it is drawn: labels at their own size, the image at the encoder's."""

    vehicle: str
    key: str
    image_HWC: NDArray[np.uint8]
    label_HW: NDArray[np.uint8]
    predictions: dict[str, NDArray[np.uint8] | None]


def gather_pictures(data: ReportData) -> Gallery:
    """Draw test frames of every vehicle, of as many as the page's size allows.

    All are of one seed: the one with most predictions, because seeds differ in their test frames.
    """
    by_seed = {seed: [run for run in data.runs if run.seed == seed] for seed in data.seeds}
    seed, runs = max(by_seed.items(), key=lambda item: sum(_has_predictions(run) for run in item[1]))
    if not data.partition:
        return _nothing("No run has written down which frames its vehicles have (partition.json).")
    try:
        shots = _shoot(data, runs)
    except MENDABLE as error:
        return _nothing(f"The frames can't be read: {error}")
    if not shots:
        return _nothing("No vehicle has test frames.")
    for width in _WIDTHS_PX:
        drawn = [(shot.vehicle, _draw(shot, data.label_space, width)) for shot in shots]
        size = sum(len(uri) for _, frame in drawn for uri in _uris(frame)) * 3 // 4
        if size <= _BUDGET_BYTES:
            break
    vehicles: dict[str, list[FramePictures]] = {}
    for vehicle, frame in drawn:
        vehicles.setdefault(vehicle, []).append(frame)
    names = data.label_space.train_names
    found = {
        int(train_id)
        for shot in shots
        for label_HW in (shot.label_HW, *shot.predictions.values())
        if label_HW is not None
        for train_id in np.unique(label_HW)
        if train_id != VOID
    }
    return Gallery(
        vehicles=vehicles,
        classes=tuple(names[train_id] for train_id in sorted(found)),
        seed=seed,
        missing=None,
    )


def _nothing(reason: str) -> Gallery:
    return Gallery(vehicles={}, classes=(), seed=None, missing=reason)


def _has_predictions(run: Run) -> bool:
    return any((run.folder / "predictions").glob("*/*.png"))


def _shoot(data: ReportData, runs: Sequence[Run]) -> list[_Shot]:
    # Generated frames differ from seed to seed: scenario, frames and partition are those of the runs shown.
    with_scenario = next((run for run in runs if (run.folder / SCENARIO_NAME).is_file()), None)
    if with_scenario is None:
        raise OperatorError(f"no run of this seed has a {SCENARIO_NAME}")
    scenario = load_scenario(with_scenario.folder / SCENARIO_NAME, {})
    root = data_folder(scenario, with_scenario.folder)
    source = open_frames(scenario.dataset.name, root, scenario.dataset.test_split)
    partition = read_partition(with_scenario.folder) or data.partition
    refs = {ref.key: ref for ref in source.refs}
    per_frame = 2 + len(data.algorithms)
    shown = evenly_spaced(tuple(partition), max(1, _MOST_PICTURES // per_frame))
    count = min(_FRAMES_A_VEHICLE, max(1, _MOST_PICTURES // (per_frame * len(shown))))
    shots = []
    for vehicle in shown:
        sight = vehicle_sight(scenario, vehicle)
        for key in evenly_spaced(tuple(partition[vehicle].get("test", ())), count):
            if key not in refs:
                continue
            image_HWC, label_HW = _load(source, refs[key], parse_image_size(scenario.image_size))
            shots.append(
                _Shot(
                    vehicle=vehicle,
                    key=key,
                    image_HWC=sight.sight().apply(image_HWC, key) if sight else image_HWC,
                    label_HW=label_HW,
                    predictions={
                        algorithm: _prediction(runs, algorithm, vehicle, key, label_HW, source.label_space)
                        for algorithm in data.algorithms
                    },
                )
            )
    return shots


def _load(
    source: FrameSource, ref: FrameRef, size_WH: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(image at the encoder's size, label at its own)."""
    frame = source.load(ref)
    return resize_frame(frame, *size_WH).image_HWC, frame.label_HW


def _prediction(
    runs: Sequence[Run],
    algorithm: str,
    vehicle: str,
    key: str,
    label_HW: NDArray[np.uint8],
    label_space: LabelSpace,
) -> NDArray[np.uint8] | None:
    for run in runs:
        if run.algorithm == algorithm:
            try:
                path = run.folder / "predictions" / vehicle / prediction_name(key)
                prediction_HW = read_prediction(path, label_space)
            except PredictionError:
                return None
            return prediction_HW if prediction_HW.shape == label_HW.shape else None
    return None


def _draw(shot: _Shot, label_space: LabelSpace, width: int) -> FramePictures:
    def labels(label_HW: NDArray[np.uint8], miou: float | None = None) -> Picture:
        return _picture(label_space.colorize(label_HW), width, shot.label_HW.shape, "png", miou)

    def predicted(prediction_HW: NDArray[np.uint8] | None) -> Picture | None:
        if prediction_HW is None:
            return None
        matrix = ConfusionMatrix(label_space)
        matrix.add(shot.label_HW, prediction_HW)
        return labels(prediction_HW, matrix.mean_iou() if matrix.pixels else None)

    return FramePictures(
        key=shot.key,
        frame=_picture(shot.image_HWC, width, shot.label_HW.shape, "jpeg"),
        ground_truth=labels(shot.label_HW),
        predictions={name: predicted(prediction_HW) for name, prediction_HW in shot.predictions.items()},
    )


def _picture(
    image_HWC: NDArray[np.uint8],
    width: int,
    shape_HW: tuple[int, ...],
    kind: Literal["jpeg", "png"],
    miou: float | None = None,
) -> Picture:
    """At most `width` wide, of the label's proportions; labels keep pure colours by taking nearest pixels."""
    size_WH = size_within(shape_HW, width)
    interpolation = cv2.INTER_NEAREST_EXACT if kind == "png" else cv2.INTER_AREA
    resized = np.asarray(cv2.resize(image_HWC, size_WH, interpolation=interpolation), np.uint8)
    text = base64.b64encode(encoded(resized, kind, quality=_JPEG_QUALITY)).decode()
    return Picture(uri=f"data:image/{kind};base64,{text}", width=size_WH[0], height=size_WH[1], miou=miou)


def _uris(frame: FramePictures) -> list[str]:
    pictures = [frame.frame, frame.ground_truth, *frame.predictions.values()]
    return [picture.uri for picture in pictures if picture is not None]
