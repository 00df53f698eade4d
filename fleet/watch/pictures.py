"""A vehicle's frames as pictures: what it sees, ground truth, prediction, where that is wrong, loss map.

While a run goes on, of the few frames whose latest predictions and loss maps it keeps; once it has ended, of
test frames. What a vehicle sees is there in a simulated fleet alone, whose frames lie on this disk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from cloud_server.algorithms.base import PREDICTED
from datasets.catalog import label_space
from datasets.divided import open_frames
from datasets.frame import FrameRef, FrameSource
from datasets.labels import LabelSpace
from evaluation.latest import Latest, LatestFrame, decode_picture, read_latest
from evaluation.predictions import prediction_name, read_prediction
from fleet.errors import OperatorError
from fleet.frames.allocation import data_folder, evenly_spaced, vehicle_sight
from fleet.frames.partition_record import PARTITION_NAME
from fleet.run.folder import SCENARIO_NAME
from fleet.run.job import read_object
from fleet.scenario import Scenario, load_scenario
from fleet.show.encoded import encoded, size_within
from fleet.watch.painted import Image, paint_errors, paint_label, paint_loss
from protocol.session.topics import check_vehicle_id

_FRAMES_A_VEHICLE = 3
_WIDTH_PX = 384


class _Simulated(NamedTuple):
    """A run whose frames lie on this disk."""

    scenario: Scenario
    source: FrameSource
    refs: dict[str, FrameRef]
    partition: dict[str, Any]
    """By vehicle: its frame keys by split."""


class _Shot(NamedTuple):
    """A frame of which there are pictures."""

    key: str
    split: str
    space: LabelSpace
    drawn: Mapping[str, Callable[[], Image]]
    """What there is of `truth`, `prediction` and `loss`: trainIds, or 255 where the loss was `most_loss`."""
    seen: bool
    """Whether the frame itself is here, with its label."""
    stage: int | None = None
    """In which they were made; None: the last one."""
    most_loss: float = 0.0

    @property
    def kinds(self) -> list[str]:
        """Of its pictures, in the order in which they are shown."""
        predicted = "prediction" in self.drawn
        there = {"frame": self.seen, "truth": self.seen or "truth" in self.drawn, "prediction": predicted}
        there |= {"errors": predicted, "loss": "loss" in self.drawn}
        return [kind for kind, is_there in there.items() if is_there]


class Pictures:
    """Draws pictures of a run folder on demand; may be used by any thread."""

    def __init__(self, run_folder: Path) -> None:
        self._folder = run_folder
        self._lock = threading.Lock()
        self._opened: _Simulated | None = None

    def of(self, vehicle: str) -> dict[str, Any]:
        """`frames`: of each `key`, `split`, `stage`, `most_loss` and the `kinds` of pictures that there are
        by now; `classes`: name and colour of each.

        Raises:
            Mistake, OSError: there is nothing of this vehicle.
        """
        shots = self._shots(vehicle)
        described = ("key", "split", "stage", "most_loss", "kinds")
        classes = shots[0].space.trained_classes if shots else ()
        return {
            "frames": [{name: getattr(shot, name) for name in described} for shot in shots],
            "classes": [(label.name, f"#{bytes(label.color_rgb).hex()}") for label in classes],
        }

    def draw(self, vehicle: str, key: str, kind: str) -> bytes:
        """One of them as a JPEG.

        Raises:
            Mistake, OSError: there is none.
        """
        found = [shot for shot in self._shots(vehicle) if shot.key == key and kind in shot.kinds]
        if not found:
            raise OperatorError(f"the run has no picture {kind!r} of {key!r} for {vehicle!r}")
        shot = found[0]
        image_HWC, truth_HW = self._seen(vehicle, key) if shot.seen else (None, shot.drawn["truth"]())
        size_WH = (_WIDTH_PX, round(_WIDTH_PX * truth_HW.shape[0] / truth_HW.shape[1]))
        if image_HWC is not None:
            size_WH = (image_HWC.shape[1], image_HWC.shape[0])
        match kind:
            case "frame":
                assert image_HWC is not None, "only what is here has this kind"
                picture = image_HWC
            case "truth":
                picture = paint_label(image_HWC, truth_HW, shot.space, size_WH)
            case "prediction":
                picture = paint_label(image_HWC, shot.drawn["prediction"](), shot.space, size_WH)
            case "errors":
                compared_HW = shot.drawn["truth"]() if "truth" in shot.drawn else truth_HW
                picture = paint_errors(image_HWC, compared_HW, shot.drawn["prediction"](), size_WH)
            case _:
                picture = paint_loss(image_HWC, shot.drawn["loss"](), size_WH)
        return encoded(picture, "jpeg")

    def _shots(self, vehicle: str) -> list[_Shot]:
        """Of the latest that there is: predictions at the end, those while a run goes on, or just frames."""
        check_vehicle_id(vehicle)
        here = self._open()
        if here is not None and vehicle not in here.partition:
            raise OperatorError(f"the run has no vehicle {vehicle!r}")
        tested = []
        if here is not None:
            keys = evenly_spaced(tuple(here.partition[vehicle].get("test", ())), _FRAMES_A_VEHICLE)
            tested = [self._test_shot(vehicle, key, here.source.label_space) for key in keys]
            if any(shot.drawn for shot in tested):
                return tested
        kept = [
            self._kept_shot(here, latest, frame)
            for latest in read_latest(self._folder, vehicle)
            for frame in latest.frames
        ]
        return kept or tested

    def _test_shot(self, vehicle: str, key: str, space: LabelSpace) -> _Shot:
        path = self._folder / PREDICTED["test"] / vehicle / prediction_name(key)
        drawn = {"prediction": partial(read_prediction, path, space)} if path.is_file() else {}
        return _Shot(key=key, split="test", space=space, drawn=drawn, seen=True)

    def _kept_shot(self, here: _Simulated | None, latest: Latest, frame: LatestFrame) -> _Shot:
        pictures = {"truth": frame.truth, "prediction": frame.prediction, "loss": frame.loss_map}
        return _Shot(
            key=frame.key,
            split=latest.split,
            space=here.source.label_space if here else label_space(latest.label_space, self._folder),
            drawn={kind: partial(decode_picture, png) for kind, png in pictures.items() if png},
            seen=here is not None and frame.key in here.refs,
            stage=latest.stage,
            most_loss=latest.most_loss,
        )

    def _seen(self, vehicle: str, key: str) -> tuple[Image, Image]:
        """(image_HWC as the vehicle sees it, small; label_HW) of a frame that is here."""
        here = self._open()
        assert here is not None, "the frame was found here"
        with self._lock:
            frame = here.source.load(here.refs[key])
        size_WH = size_within(frame.label_HW.shape, _WIDTH_PX)
        image_HWC = np.asarray(cv2.resize(frame.image_HWC, size_WH, interpolation=cv2.INTER_AREA), np.uint8)
        sight = vehicle_sight(here.scenario, vehicle)
        return (image_HWC if sight is None else sight.sight().apply(image_HWC, key)), frame.label_HW

    def _open(self) -> _Simulated | None:
        """The run's frames; None where they are not on this disk, or not yet."""
        with self._lock:
            # Last among what a launch writes before it starts: the frames are all there.
            if self._opened is None and (self._folder / PARTITION_NAME).is_file():
                partition = read_object(self._folder / PARTITION_NAME)["vehicles"]
                scenario = load_scenario(self._folder / SCENARIO_NAME, {})
                root = data_folder(scenario, self._folder)
                source = open_frames(scenario.dataset.name, root, scenario.dataset.test_split)
                refs = {ref.key: ref for ref in source.refs}
                self._opened = _Simulated(scenario, source, refs, partition)
            return self._opened
