"""`--rerun FILE|serve`: a run that has ended as a recording that the Rerun viewer opens.

Frames as each vehicle sees them, with ground truth and prediction by class, curves, and what has happened.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from cloud_server.algorithms.base import PREDICTED
from cloud_server.run.results import RESULT_NAME
from cloud_server.storage.recorders import LOG_NAME
from datasets.divided import open_frames
from datasets.frame import Frame
from datasets.labels import VOID, LabelSpace
from evaluation.predictions import prediction_name, read_prediction
from fleet.broker import HOST as LOOPBACK
from fleet.broker import free_port
from fleet.cli.interrupts import Interrupted
from fleet.errors import OperatorError
from fleet.frames.allocation import data_folder, evenly_spaced, vehicle_sight
from fleet.frames.partition_record import PARTITION_NAME
from fleet.run.folder import kept_scenario
from fleet.run.job import read_object
from fleet.show.encoded import encoded, size_within
from protocol.atomic import sync_folder
from protocol.showing import plain

_MOST_VEHICLES = 24
_MOST_FRAMES = 12
"""Of a vehicle's test frames, evenly spaced, as of the vehicles: a recording is looked at, not archived."""
_WIDTH_PX = 640
_CURVES = ("val_miou", "loss", "uplink_bytes")
_TOLD = ("joined", "left", "back", "restarted", "failed", "dropped", "reject", "committed", "result")


SERVE = Path("serve")
"""In place of a file: one in the run's folder, which is then served to browsers of this machine."""
SERVED_NAME = "run.rrd"
_SERVER_MEMORY = "1GiB"


class RerunFile:
    """A recording to be written; tried when it is made: a run of hours must not end at a missing package."""

    def __init__(self, path: Path) -> None:
        """Look whether it could be written; `SERVE` = into the run's folder, and served until Ctrl-C.

        Raises:
            OperatorError: the package rerun-sdk is missing, or the file can't be written there.
        """
        try:
            import rerun
        except ImportError as error:
            raise OperatorError(
                "--rerun needs the package rerun-sdk: pip install 'blackfleet[rerun]'"
            ) from error
        if path != SERVE and (path.is_dir() or not os.access(path.absolute().parent, os.W_OK)):
            raise OperatorError(f"--rerun: {path} can't be written; name a file in a folder of yours")
        self._rerun = rerun
        self._path = path

    def write(self, run_folder: Path, console: Console) -> None:
        """Put a run that has ended into the file, in place of what it held.

        Raises:
            OperatorError: the folder holds no run that has ended, or not its frames.
            OSError: the file can't be written.
        """
        read_object(run_folder / RESULT_NAME)
        path = run_folder / SERVED_NAME if self._path == SERVE else self._path
        with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=".rerun-") as folder:
            partial = Path(folder) / "run.rrd"
            recording = self._rerun.RecordingStream("blackfleet", recording_id=run_folder.resolve().name)
            recording.save(partial)
            self._log_frames(recording, run_folder)
            self._log_events(recording, run_folder / LOG_NAME)
            recording.flush()
            recording.disconnect()
            partial.replace(path)
        sync_folder(path.absolute().parent)
        console.print(f"{path}: open it with rerun {path}", soft_wrap=True)
        if self._path == SERVE:
            _serve(path, console)

    def _log_frames(self, recording: Any, run_folder: Path) -> None:
        scenario = kept_scenario(run_folder)
        partition = read_object(run_folder / PARTITION_NAME)["vehicles"]
        root = data_folder(scenario, run_folder)
        source = open_frames(scenario.dataset.name, root, scenario.dataset.test_split)
        refs = {ref.key: ref for ref in source.refs}
        recording.log("/", self._classes(source.label_space), static=True)
        for vehicle in evenly_spaced(tuple(partition), _MOST_VEHICLES):
            sight = vehicle_sight(scenario, vehicle)
            for number, key in enumerate(evenly_spaced(tuple(partition[vehicle]["test"]), _MOST_FRAMES)):
                path = run_folder / PREDICTED["test"] / vehicle / prediction_name(key)
                frame = source.load(refs[key])
                image_HWC = _seen(frame)
                if sight is not None:
                    image_HWC = sight.sight().apply(image_HWC, key)
                recording.set_time("test frame", sequence=number)
                at, rerun = f"vehicles/{vehicle}/camera", self._rerun
                recording.log(
                    at, rerun.EncodedImage(contents=encoded(image_HWC, "jpeg"), media_type="image/jpeg")
                )
                recording.log(f"{at}/truth", rerun.SegmentationImage(_fit(frame.label_HW, image_HWC)))
                if path.is_file():
                    prediction_HW = read_prediction(path, source.label_space)
                    recording.log(f"{at}/prediction", rerun.SegmentationImage(_fit(prediction_HW, image_HWC)))
                recording.log(f"vehicles/{vehicle}/key", rerun.TextLog(key))
        recording.reset_time()

    def _classes(self, space: LabelSpace) -> Any:
        rows = [(label.train_id, label.name, tuple(label.color_rgb)) for label in space.trained_classes]
        return self._rerun.AnnotationContext([*rows, (VOID, "void", (0, 0, 0, 0))])

    def _log_events(self, recording: Any, log: Path) -> None:
        for event in _events(log):
            name, vehicle = event["event"], event.get("vehicle")
            recording.set_time("time", timestamp=event["time"])
            if name == "curve":
                recording.set_time("round", sequence=event["round"])
                for key in _CURVES:
                    if event.get(key) is not None:
                        recording.log(f"curves/{key}", self._rerun.Scalars(event[key]))
            elif name == "validation" and event["miou"] is not None:
                recording.set_time("round", sequence=event["round"])
                recording.log(f"vehicles/{vehicle}/val_miou", self._rerun.Scalars(event["miou"]))
            elif name in _TOLD:
                words = " ".join(
                    str(word) for word in (name, vehicle, event.get("reason")) if word is not None
                )
                recording.log(
                    f"vehicles/{vehicle}/events" if vehicle else "events", self._rerun.TextLog(words)
                )


def _serve(path: Path, console: Console) -> None:
    """Show a recording to browsers of this machine until Ctrl-C.

    The package's own `serve_grpc` listens on every interface without a password; its command can be bound.
    """
    data_port, page_port = free_port(), free_port()
    import rerun_cli

    # Its module would start this program, too, and leave it behind when it is stopped itself.
    program = Path(rerun_cli.__file__).with_name("rerun")
    command = [str(program), str(path), "--serve-web", "--bind", LOOPBACK]
    command += ["--port", str(data_port), "--web-viewer-port", str(page_port)]
    command += ["--server-memory-limit", _SERVER_MEMORY]
    data = quote(f"rerun+http://{LOOPBACK}:{data_port}/proxy", safe="")
    console.print(f"look at http://{LOOPBACK}:{page_port}?url={data} until Ctrl-C", soft_wrap=True)
    with contextlib.suppress(Interrupted):  # which ends the server, too
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode > 0:
            raise OperatorError(f"--rerun serve: Rerun's server ended: {plain(done.stderr.strip()[-300:])}")


def _events(log: Path) -> Iterator[dict[str, Any]]:
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue  # the torn line of a killed process


def _seen(frame: Frame) -> NDArray[np.uint8]:
    """image_HWC, small, in the proportions of its label."""
    size_WH = size_within(frame.label_HW.shape, _WIDTH_PX)
    return np.asarray(cv2.resize(frame.image_HWC, size_WH, interpolation=cv2.INTER_AREA), np.uint8)


def _fit(label_HW: NDArray[np.uint8], image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    size_WH = (image_HWC.shape[1], image_HWC.shape[0])
    return np.asarray(cv2.resize(label_HW, size_WH, interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
