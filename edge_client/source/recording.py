"""A vehicle's recording at work: frames come in, a run works on a snapshot of them."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from datasets.labels import LabelSpace
from edge_client.conversation import Stopped
from edge_client.recent import Seeing
from edge_client.source.recorder import Recorder
from edge_client.source.ring import Ring
from edge_client.source.settings import SourceConfig
from edge_client.source.snapshot import (
    MANIFEST_NAME,
    Manifest,
    SnapshotFrames,
    read_manifest,
    take_snapshot,
    write_manifest,
)
from edge_client.source.uri import Kind

log = logging.getLogger(__name__)

_POLL_S = 0.1
_REPORT_S = 5.0


@dataclass(frozen=True)
class Recording:
    """A recording at work."""

    frames: SnapshotFrames
    """What the run works on."""
    run_is_over: Callable[[], None]
    """To be called when the cloud has ended the run: the next one has other frames. Raises OSError where the
    disk is full or gone."""
    camera: Callable[[], Seeing]
    """How its camera comes on, where it has one."""


@contextlib.contextmanager
def recorded_frames(
    config: SourceConfig,
    fleet: str,
    label_space: LabelSpace,
    stop: threading.Event,
    look: Callable[[NDArray[np.uint8]], None] | None = None,
    uncertainty: Callable[[], float | None] = lambda: None,
) -> Iterator[Recording]:
    """Record in the body, which works on the frames of a snapshot.

    `look` is shown the pictures, and `uncertainty` asked about them, see `Recorder`.

    Raises:
        VehicleError: the folder is another process's, or the snapshot is damaged.
        SettingError: a setting is not for a folder of pictures.
        Mistake: the source can't be opened here, ever, or gave too few frames.
        Stopped: the process was asked to stop before there were enough.
        OSError: the disk is full or gone.
    """
    config.check_folder()
    folder = Path(config.recording)
    manifest_path = folder / MANIFEST_NAME
    ring = Ring(folder / "frames", round(config.quota_mb * 1e6))
    try:
        manifest = read_manifest(manifest_path) if config.snapshot != "new" else None
        if manifest is not None and _is_for(manifest, config, fleet):
            ring.pin(_keys(manifest))
        else:
            manifest = None
        with Recorder(config, ring, label_space, folder / "taken.json", look, uncertainty) as recorder:
            if manifest is None:
                _wait_for_frames(config, ring, recorder, stop)
                ring.pin(frame.key for frame in ring.frames)
                manifest = take_snapshot(ring, most=config.frames, fleet=fleet, source=config.where.shown)
                write_manifest(manifest_path, manifest)
                ring.pin(_keys(manifest))
            elif manifest.is_over:
                manifest = msgspec.structs.replace(manifest, is_over=False, fleet=fleet)
                write_manifest(manifest_path, manifest)
            frames = SnapshotFrames(ring.folder, label_space, manifest)
            log.info("this run works on %d frames, %d with labels", len(frames.refs), frames.labelled)
            ended = msgspec.structs.replace(manifest, is_over=True)
            yield Recording(frames, partial(write_manifest, manifest_path, ended), partial(_camera, recorder))
    finally:
        ring.close()


def _camera(recorder: Recorder) -> Seeing:
    rate_hz = recorder.rate_hz
    return Seeing() if rate_hz is None else Seeing(camera_hz=rate_hz, camera_dropped=recorder.dropped)


def _is_for(manifest: Manifest, config: SourceConfig, fleet: str) -> bool:
    """Whether a run that begins, or goes on, now is to have the frames of the last one."""
    return config.snapshot == "keep" or (manifest.fleet == fleet and not manifest.is_over)


def _keys(manifest: Manifest) -> list[str]:
    return [Path(frame.file).stem for frame in manifest.frames]


def _wait_for_frames(config: SourceConfig, ring: Ring, recorder: Recorder, stop: threading.Event) -> None:
    """Until there are as many as a run wants, or all that the source gives."""
    where = config.where
    is_read_at_once = where.kind is Kind.FILE and not where.is_folder and not config.is_played
    reported_s = time.monotonic()
    while not recorder.has_ended and (is_read_at_once or len(ring.frames) < config.frames):
        if stop.wait(_POLL_S):
            raise Stopped
        if time.monotonic() - reported_s > _REPORT_S:
            reported_s = time.monotonic()
            log.info("waiting for frames: %d of %d", min(len(ring.frames), config.frames), config.frames)
    if recorder.failure is not None:
        raise recorder.failure
