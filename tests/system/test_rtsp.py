"""A stream over RTSP: killed and started again, it goes on. Skips where there is no server to stream."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_client.source import live
from edge_client.source.capture import OpenCVCapture
from edge_client.source.live import LiveFrames
from edge_client.source.settings import SourceConfig

SERVER = Path(__file__).with_name("rtsp_server.py")
PYTHON = "/usr/bin/python3"
"""The system's: GStreamer's bindings are no package of pip's."""
WAIT_S = 60.0


def why_not() -> str | None:
    """What this machine lacks to stream and to read a stream; None: nothing."""
    if cv2.CAP_FFMPEG not in cv2.videoio_registry.getBackends():
        return "this OpenCV has no FFmpeg"
    try:
        tried = subprocess.run([PYTHON, SERVER, "--check"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no RTSP server: {error}"
    return None if tried.returncode == 0 else f"no RTSP server: {tried.stderr.strip().splitlines()[-1]}"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def stream(port: int) -> Iterator[None]:
    server = subprocess.Popen([PYTHON, SERVER, str(port)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield
    finally:
        server.kill()
        server.wait()


def test_stream_that_is_killed_and_started_again_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := why_not():
        pytest.skip(reason)
    monkeypatch.setattr(live, "FIRST_PAUSE_S", 0.1)
    monkeypatch.setitem(os.environ, "OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_transport;tcp")
    port, stop = free_port(), threading.Event()
    config = SourceConfig(uri=f"rtsp://127.0.0.1:{port}/front", recording=str(tmp_path), grab_timeout_s=2.0)
    frames = LiveFrames(lambda: OpenCVCapture(config), shown="front", timeout_s=2.0, stop=stop)
    given: list[np.ndarray] = []

    def look() -> None:
        for image_HWC, _ in frames:
            given.append(image_HWC)

    def more(wanted: int) -> None:
        deadline, before = time.monotonic() + WAIT_S, len(given)
        while len(given) < before + wanted:
            assert time.monotonic() < deadline, f"{len(given) - before} frames in {WAIT_S:g} s"
            time.sleep(0.02)

    looking = threading.Thread(target=look)
    try:
        with stream(port):
            looking.start()
            more(10)
        with stream(port):
            more(10)
            assert frames.rate.hz > 0
    finally:
        stop.set()
        looking.join()
    assert (given[-1].shape, frames.reconnects) == ((240, 320, 3), 1)
    assert frames.failures >= 1 and (given[-1] != given[0]).any()
