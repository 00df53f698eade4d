"""The newest picture of a camera: read as fast as they come, so that none is old by the time it is used.

Shapes: H height, W width.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edge_client.recent import RecentRate
from edge_client.source.capture import Capture, CaptureError
from protocol.errors import Mistake

_POLL_S = 0.2


class Grabber:
    """One opening of a camera, with a thread of its own, which holds one picture at a time."""

    def __init__(
        self, open_capture: Callable[[], Capture], timeout_s: float, rate: RecentRate | None = None
    ) -> None:
        """Opening may take three times `timeout_s`, a picture after that no longer than that; `rate` is
        told of each."""
        self._rate = RecentRate() if rate is None else rate
        self._open = open_capture
        self._timeout_s = timeout_s
        self._condition = threading.Condition()
        self._newest_HWC: NDArray[np.uint8] | None = None
        self._failure: Exception | None = None
        self._closing = False
        self._has_given = False
        self.dropped = 0
        """Pictures that a newer one has replaced before anybody took them."""
        self._thread = threading.Thread(target=self._read, name="camera", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether its thread still holds the camera, in a call that doesn't return for instance."""
        return self._thread.is_alive()

    def newest(self, stop: threading.Event) -> NDArray[np.uint8] | None:
        """Wait for a picture that nobody has taken yet, uint8 BGR [H, W, 3]; None: `stop` is set.

        Raises:
            CaptureError: there are no more, or none came in time.
            Mistake: it can never be opened here.
        """
        patience_s = self._timeout_s if self._has_given else 3 * self._timeout_s
        deadline = time.monotonic() + patience_s
        with self._condition:
            while self._newest_HWC is None:
                if self._failure is not None:
                    raise self._failure
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise CaptureError(f"no frame for {patience_s:g} s")
                if stop.is_set():
                    return None
                self._condition.wait(min(left_s, _POLL_S))
            image_HWC, self._newest_HWC = self._newest_HWC, None
            self._has_given = True
            return image_HWC

    def close(self) -> None:
        """Tell the thread to end, and wait for it for a while."""
        with self._condition:
            self._closing = True
        self._thread.join(self._timeout_s)

    def _read(self) -> None:
        try:
            capture = self._open()
            try:
                while not self._closing:
                    image_HWC = capture.read()
                    if image_HWC is None:
                        raise CaptureError("it gives no more frames")
                    self._rate.note()
                    with self._condition:
                        self.dropped += self._newest_HWC is not None
                        self._newest_HWC = image_HWC
                        self._condition.notify()
            finally:
                capture.close()
        except (CaptureError, Mistake) as error:
            self._fail(error)
        except Exception as error:  # whatever a driver's binding raises, the camera may come back
            self._fail(CaptureError(f"{type(error).__name__}: {error}"))

    def _fail(self, error: Exception) -> None:
        with self._condition:
            self._failure = error
            self._condition.notify()
