"""A vehicle's test frames as pictures: what it sees, ground truth and, once it is written, prediction.

Only of a simulated fleet, whose frames and predictions lie on this disk.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.divided import open_frames
from datasets.frame import FrameRef, FrameSource
from datasets.labels import VOID
from evaluation.overlays import paint
from evaluation.predictions import prediction_name, read_prediction
from fleet.errors import OperatorError
from fleet.frames.allocation import data_folder, evenly_spaced, vehicle_sight
from fleet.frames.partition_record import PARTITION_NAME
from fleet.run.folder import SCENARIO_NAME
from fleet.run.job import read_object
from fleet.scenario import Scenario, load_scenario
from fleet.show.encoded import encoded, size_within

KINDS = ("frame", "truth", "prediction", "errors")
_PREDICTED = KINDS[2:]
_ERROR_RGB = (224, 32, 48)
_FRAMES_A_VEHICLE = 3
_WIDTH_PX = 384


class Pictures:
    """Draws pictures of a run folder on demand; may be used by any thread."""

    def __init__(self, run_folder: Path) -> None:
        self._folder = run_folder
        self._lock = threading.Lock()
        self._opened: tuple[Scenario, FrameSource, dict[str, FrameRef], dict[str, Any]] | None = None

    def of(self, vehicle: str) -> dict[str, Any]:
        """`frames`: each test frame's `key`, and the `kinds` of pictures that there are by now; `classes`:
        name and colour of each.

        Raises:
            Mistake, OSError: the folder has no frames, or none of this vehicle.
        """
        _, source, _, partition = self._open()
        if vehicle not in partition:
            raise OperatorError(f"the run has no vehicle {vehicle!r}")
        keys = evenly_spaced(tuple(partition[vehicle].get("test", ())), _FRAMES_A_VEHICLE)
        trained = source.label_space.trained_classes
        return {
            "frames": [{"key": key, "kinds": self._kinds(vehicle, key)} for key in keys],
            "classes": [(label.name, f"#{bytes(label.color_rgb).hex()}") for label in trained],
        }

    def draw(self, vehicle: str, key: str, kind: str) -> bytes:
        """One of them as a JPEG.

        Raises:
            Mistake, OSError: there is none.
        """
        scenario, source, refs, partition = self._open()
        if kind not in KINDS or key not in partition.get(vehicle, {}).get("test", ()) or key not in refs:
            raise OperatorError(f"the run has no picture {kind!r} of {key!r} for {vehicle!r}")
        with self._lock:
            frame = source.load(refs[key])
        size_WH = size_within(frame.label_HW.shape, _WIDTH_PX)
        image_HWC = np.asarray(cv2.resize(frame.image_HWC, size_WH, interpolation=cv2.INTER_AREA), np.uint8)
        sight = vehicle_sight(scenario, vehicle)
        if sight is not None:
            image_HWC = sight.sight().apply(image_HWC, key)
        if kind == "truth":
            image_HWC = paint(image_HWC, frame.label_HW, source.label_space)
        elif kind in _PREDICTED:
            prediction_HW = read_prediction(self._prediction(vehicle, key), source.label_space)
            if kind == "prediction":
                image_HWC = paint(image_HWC, prediction_HW, source.label_space)
            else:
                image_HWC = _paint_errors(image_HWC, frame.label_HW, prediction_HW)
        return encoded(image_HWC, "jpeg")

    def _kinds(self, vehicle: str, key: str) -> list[str]:
        return [kind for kind in KINDS if kind not in _PREDICTED or self._prediction(vehicle, key).is_file()]

    def _prediction(self, vehicle: str, key: str) -> Path:
        return self._folder / "predictions" / vehicle / prediction_name(key)

    def _open(self) -> tuple[Scenario, FrameSource, dict[str, FrameRef], dict[str, Any]]:
        with self._lock:
            if self._opened is None:
                # Last among what a launch writes before it starts: the frames are all there.
                partition = read_object(self._folder / PARTITION_NAME)["vehicles"]
                scenario = load_scenario(self._folder / SCENARIO_NAME, {})
                root = data_folder(scenario, self._folder)
                source = open_frames(scenario.dataset.name, root, scenario.dataset.test_split)
                self._opened = (scenario, source, {ref.key: ref for ref in source.refs}, partition)
            return self._opened


def _paint_errors(
    image_HWC: NDArray[np.uint8], label_HW: NDArray[np.uint8], prediction_HW: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """The image in grey, red where the prediction differs from a label that counts.

    Raises:
        OperatorError: they are of different sizes.
    """
    if prediction_HW.shape != label_HW.shape:
        raise OperatorError(f"the prediction is {prediction_HW.shape}, its label {label_HW.shape}")
    wrong_HW = ((prediction_HW != label_HW) & (label_HW != VOID)).astype(np.uint8)
    size_WH = (image_HWC.shape[1], image_HWC.shape[0])
    wrong = cv2.resize(wrong_HW, size_WH, interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)
    painted = np.repeat(cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2)
    painted[wrong] = (painted[wrong] + 2.0 * np.array(_ERROR_RGB)) / 3
    return np.asarray(painted, np.uint8)
