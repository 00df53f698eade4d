"""How OpenCV is told to open a source: on Jetsons by GStreamer, else by FFmpeg and V4L2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2

from edge_client.source.settings import FLIPS, SourceConfig
from edge_client.source.uri import Kind
from protocol.errors import SettingError

_JETSON = Path("/etc/nv_tegra_release")
"""There on every JetPack."""
_NEWEST = "appsink drop=true max-buffers=1 sync=false"
_TO_BGR = "videoconvert ! video/x-raw,format=BGR"
_FROM_NVMM = "nvvidconv{flip} ! video/x-raw,format=BGRx"
_NVIDIA_FLIPS = dict(zip(FLIPS, (0, 4, 6, 3, 2, 1), strict=True))
"""`flip-method` of nvvidconv: 1 is a quarter turn counterclockwise, 3 clockwise."""


@dataclass(frozen=True)
class Way:
    """One way to open a source."""

    name: str
    what: str
    """File, device, URL or GStreamer pipeline."""
    api: int
    parameters: Sequence[int] = ()
    """OpenCV's properties and their values, in turn."""
    turns: bool = False
    """Whether its pictures are already flipped."""


def has_gstreamer() -> bool:
    """Whether this OpenCV was built with GStreamer; pip's is not."""
    return cv2.CAP_GSTREAMER in cv2.videoio_registry.getBackends()


def ways_to_open(
    config: SourceConfig, *, gstreamer: bool | None = None, jetson: bool | None = None
) -> list[Way]:
    """The ways to open a source here, the preferred one first.

    Args:
        config: what is to be opened; no folder.
        gstreamer: whether OpenCV has GStreamer; default: looked for.
        jetson: whether NVIDIA's elements are there; default: looked for.

    Raises:
        SettingError: this OpenCV can't.
    """
    gstreamer = has_gstreamer() if gstreamer is None else gstreamer
    jetson = _JETSON.exists() if jetson is None else jetson
    uri = config.where
    if uri.kind is Kind.CSI:
        if not gstreamer:
            raise SettingError(
                f"{uri.shown} needs an OpenCV with GStreamer, which pip's has not; use the system's, in an "
                f"environment with --system-site-packages, or a camera that is v4l2:///dev/videoN"
            )
        return [_csi(config, uri.where)]
    if uri.kind is Kind.V4L2:
        return [_v4l2(config, uri.where)]
    if uri.kind is Kind.FILE:
        return [Way("OpenCV", uri.where, cv2.CAP_ANY)]
    timeout_ms = int(config.grab_timeout_s * 1000)
    parameters = (cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 2 * timeout_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, timeout_ms)
    ffmpeg = Way("FFmpeg", uri.where, cv2.CAP_FFMPEG, parameters)
    return [_rtsp(uri.where, jetson), ffmpeg] if gstreamer else [ffmpeg]


def _csi(config: SourceConfig, number: str) -> Way:
    caps = ["video/x-raw(memory:NVMM)"]
    size = _size_of_camera(config)
    if size is not None:
        caps += [f"width={size[0]}", f"height={size[1]}"]
    if config.rate_hz is not None:
        caps.append(f"framerate={round(config.rate_hz * 1000)}/1000")
    flip = _NVIDIA_FLIPS[config.flip]
    convert = _FROM_NVMM.format(flip=f" flip-method={flip}" if flip else "")
    pipeline = f"nvarguscamerasrc sensor-id={number} ! {','.join(caps)} ! {convert} ! {_TO_BGR} ! {_NEWEST}"
    return Way("GStreamer", pipeline, cv2.CAP_GSTREAMER, turns=True)


def _rtsp(url: str, jetson: bool) -> Way:
    if any(character in url for character in '"\\'):
        raise SettingError("a stream's URL must not hold quotation marks or backslashes: write %22 and %5C")
    # On a Jetson decodebin takes the hardware's decoder, whose frames lie in memory of its own.
    convert = f"{_FROM_NVMM.format(flip='')} ! {_TO_BGR}" if jetson else _TO_BGR
    return Way(
        "GStreamer",
        f'rtspsrc location="{url}" latency=200 protocols=tcp ! decodebin ! {convert} ! {_NEWEST}',
        cv2.CAP_GSTREAMER,
    )


def _v4l2(config: SourceConfig, device: str) -> Way:
    parameters: list[int] = []
    size = _size_of_camera(config)
    if size is not None:
        parameters += [cv2.CAP_PROP_FRAME_WIDTH, size[0], cv2.CAP_PROP_FRAME_HEIGHT, size[1]]
    if config.rate_hz is not None:
        parameters += [cv2.CAP_PROP_FPS, round(config.rate_hz)]
    return Way("V4L2", device, cv2.CAP_V4L2, parameters)


def _size_of_camera(config: SourceConfig) -> tuple[int, int] | None:
    """What is asked of a camera that may lie on its side."""
    lies = config.flip in ("rotate-90", "rotate-270")
    return config.size[::-1] if config.size is not None and lies else config.size
