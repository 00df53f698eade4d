"""Records a source into a ring while the vehicle learns; nothing that happens to it ends the vehicle.

Shapes: H height, W width.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.labels import LabelSpace
from edge_client.source.capture import CaptureError, OpenCVCapture, PacedVideo
from edge_client.source.choice import Choice
from edge_client.source.folder import GrowingFolder
from edge_client.source.live import LiveFrames
from edge_client.source.ring import Ring
from edge_client.source.settings import SourceConfig
from edge_client.source.uri import Kind
from protocol.errors import Mistake
from protocol.seldom import is_logged

log = logging.getLogger(__name__)

Pictures: TypeAlias = Iterable[tuple[NDArray[np.uint8], float]]
"""BGR [H, W, 3], and when each was taken, in seconds from any one moment."""

_JPEG_QUALITY = 95
_REPORT_S = 60.0


class Recorder:
    """One source, one ring, one thread; a context, in which it records.

    Attributes:
        seen: frames that were looked at.
        kept: those that are in the ring, or were when it was full.
        unwritten: those worth keeping for which the disk had no room.
        has_ended: whether the source gives no more; a camera never says so.
        failure: what ended it, if that was a mistake.
    """

    def __init__(
        self,
        config: SourceConfig,
        ring: Ring,
        label_space: LabelSpace,
        memory: Path,
        look: Callable[[NDArray[np.uint8]], None] | None = None,
        uncertainty: Callable[[], float | None] = lambda: None,
    ) -> None:
        """`memory`: file in which a folder's pictures are remembered; `look` is shown every picture that is
        looked at here, uint8 BGR [H, W, 3], and must return at once; `uncertainty` is the served model's, of
        what the camera sees now, 0 to 1."""
        self._config = config
        self._ring = ring
        self._label_space = label_space
        self._memory = memory
        self._look = look
        self._uncertainty = uncertainty
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._live: LiveFrames | None = None
        self._epoch_s: float | None = None
        """What the times in a recorded drive count from: its file's time; None: frames are of now."""
        self.seen = 0
        self.kept = 0
        self.unwritten = 0
        self.has_ended = False
        self.failure: Mistake | None = None

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(3 * self._config.grab_timeout_s)
        log.info("recorded: %s", self.summary())

    @property
    def dropped(self) -> int:
        """Frames of a camera that were never looked at, because newer ones were there."""
        return 0 if self._live is None else self._live.dropped

    @property
    def rate_hz(self) -> float | None:
        """Frames a second that a camera gives now; None: it is none."""
        return None if self._live is None else self._live.rate.hz

    def summary(self) -> str:
        """One line of what has happened so far."""
        frames = self._ring.frames
        text = f"{self.seen} frames seen, {self.kept} kept, {self.dropped} dropped"
        if self.rate_hz is not None:
            text += f", {self.rate_hz:.1f} a second now"
        if self.unwritten:
            text += f", {self.unwritten} without room on the disk"
        if self._live is not None and self._live.failures:
            text += f", opened anew {max(0, self._live.reconnects)} times"
        megabytes = sum(frame.size_bytes for frame in frames) / 1e6
        return f"{text}; {len(frames)} frames of {megabytes:.1f} MB in {self._ring.folder}"

    def _run(self) -> None:
        try:
            if self._config.where.is_folder:
                self._record_folder()
            else:
                self._record(self._pictures())
        except Mistake as error:
            self.failure = error
            log.error("nothing is recorded any more: %s", error)
        except Exception:
            log.exception("nothing is recorded any more")
        finally:
            self.has_ended = True

    def _record_folder(self) -> None:
        folder = GrowingFolder(Path(self._config.where.where), self._ring, self._label_space, self._memory)
        looks = folder.watch(self._stop)
        while not self._stop.is_set():
            try:
                for _ in looks:
                    self.seen, self.kept = folder.taken + folder.faulty, folder.taken
            except OSError as error:
                self._complain(error)
                self._stop.wait(1.0)
                looks = folder.watch(self._stop)

    def _pictures(self) -> Pictures:
        config, uri = self._config, self._config.where
        if uri.kind is not Kind.FILE:
            self._live = LiveFrames(
                lambda: OpenCVCapture(config),
                shown=uri.shown,
                timeout_s=config.grab_timeout_s,
                stop=self._stop,
            )
            return self._live
        if not Path(uri.where).is_file():
            raise Mistake(f"there is nothing at {uri.where}: give a recorded drive, or a folder of pictures")
        if config.is_played:
            self._live = LiveFrames(
                lambda: PacedVideo(config),
                shown=uri.shown,
                timeout_s=config.grab_timeout_s,
                stop=self._stop,
                comes_back=False,
            )
            return self._live
        # Every reading of a drive gives its frames the same names.
        self._epoch_s = Path(uri.where).stat().st_mtime
        return self._whole_video()

    def _whole_video(self) -> Iterator[tuple[NDArray[np.uint8], float]]:
        """All frames of a recorded drive and their times in it, as fast as they can be read."""
        try:
            video = OpenCVCapture(self._config)
        except CaptureError as error:
            raise Mistake(f"{self._config.uri} is no video that OpenCV can decode: {error}") from error
        try:
            number = 0
            while not self._stop.is_set() and (image_HWC := video.read()) is not None:
                yield image_HWC, number / video.rate_hz
                number += 1
        finally:
            video.close()

    def _record(self, pictures: Pictures) -> None:
        config = self._config
        choice = Choice(every_s=config.every_s, changed=config.changed, unsure=config.unsure)
        reported_s = time.monotonic()
        for image_HWC, at_s in pictures:
            self.seen += 1
            if self._look is not None:
                self._look(image_HWC)
            if choice.is_worth(image_HWC, at_s, self._uncertainty()):
                self._keep(image_HWC, time.time() if self._epoch_s is None else self._epoch_s + at_s)
            if time.monotonic() - reported_s > _REPORT_S:
                reported_s = time.monotonic()
                log.info("recording: %s", self.summary())

    def _keep(self, image_HWC: NDArray[np.uint8], taken_at_s: float) -> None:
        parameters = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
        is_coded, data = cv2.imencode(".jpg", np.ascontiguousarray(image_HWC), parameters)
        assert is_coded, "a picture of three channels of 8 bits can be coded"
        try:
            key = self._ring.add(data.tobytes(), ".jpg", taken_at_s)
        except OSError as error:
            self._complain(error)
            return
        if key is None:
            self._complain("the quota is taken by the frames of the run")
        else:
            self.kept += 1

    def _complain(self, reason: object) -> None:
        self.unwritten += 1
        if is_logged(self.unwritten, first=3):
            log.warning("a frame can't be kept: %s", reason)
