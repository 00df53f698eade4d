"""Where frames come from, which are kept, and how many a run works on."""

from __future__ import annotations

import math

import msgspec

from edge_client.source.uri import Kind, SourceUri
from protocol.errors import SettingError

FLIPS = ("none", "horizontal", "vertical", "rotate-90", "rotate-180", "rotate-270")
"""What pictures may need to stand upright; rotations are clockwise."""

SNAPSHOTS = ("auto", "keep", "new")

FEWEST_FRAMES = 3
"""A run needs one frame each to train, to validate and to test."""


_NOT_OF_FOLDERS = {
    "serve": "--serve",
    "size": "--source-size",
    "rate_hz": "--source-rate",
    "flip": "--source-flip",
    "loop": "--source-loop",
    "every_s": "--keep-every",
    "changed": "--keep-changed",
    "unsure": "--keep-unsure",
    "grab_timeout_s": "--grab-timeout",
}
"""Settings that are about cameras and drives, and their options."""


class SourceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A vehicle's camera, or what stands for one."""

    uri: str
    """`csi://0`, `v4l2:///dev/video0`, `rtsp://…`, `file://drive.mp4`, or a folder of pictures that grows."""
    recording: str
    """Folder of the ring of frames and of the snapshot that a run works on."""
    size: tuple[int, int] | None = None
    """Width and height in pixels, asked of a camera; other frames become as large. None: as they come."""
    rate_hz: float | None = None
    """Frames a second, asked of a camera; a recorded drive is played at this pace. None: as they come."""
    flip: str = "none"
    """One of `FLIPS`."""
    loop: bool = False
    """Whether a recorded drive begins again at its end, at its own pace."""
    every_s: float = 1.0
    """The least time between two frames that are kept."""
    changed: float = 0.01
    """The least difference to the last frame that was kept, in mean brightness over a small picture, 0 to 1:
    a car that stands still records nothing."""
    unsure: float | None = None
    """Of the frames that would be kept otherwise, only this share, of which the served model is least sure,
    by the mean entropy of its classes; None: it doesn't count."""
    quota_mb: float = 2000.0
    """Frames in the ring take no more than this, in 10^6 bytes; the oldest go first."""
    frames: int = 100
    """A run begins when there are as many frames, and works on the newest of them."""
    grab_timeout_s: float = 5.0
    """A camera that gives no frame for as long is opened anew."""
    snapshot: str = "auto"
    """`auto`: the frames of the run that isn't over, else the newest; `keep`: those of the last run;
    `new`: the newest."""

    serve: str | None = None
    """File of an exported model, or `cloud` for the cloud's network: class maps of what the camera sees now
    are made with it. None: none are."""
    serve_to: str | None = None
    """Folder of the newest class map; None: `serving` beside the recording."""

    def __post_init__(self) -> None:
        uri = SourceUri.parse(self.uri)
        if self.loop and uri.kind is not Kind.FILE:
            raise SettingError(f"only a recorded drive can begin again at its end, {uri.shown} has none")
        if self.rate_hz is not None and uri.kind is Kind.RTSP:
            raise SettingError(f"the rate of {uri.shown} is its camera's to set, not --source-rate's")
        if self.serve is not None and uri.kind is Kind.FILE and not self.is_played:
            raise SettingError(
                f"nobody drives with {self.uri}, which is not played: give --source-loop or --source-rate, "
                f"or a camera, or no --serve"
            )
        if self.serve_to is not None and self.serve is None:
            raise SettingError(f"nothing is served to {self.serve_to} without a model (--serve)")
        if self.size is not None and min(self.size) < 16:
            raise SettingError(f"size must be at least 16x16 pixels, got {self.size[0]}x{self.size[1]}")
        for name in ("rate_hz", "every_s", "quota_mb", "grab_timeout_s"):
            value = getattr(self, name)
            if value is not None and not (value >= 0 if name == "every_s" else value > 0):
                raise SettingError(f"{name} must be above 0, got {value}")
            if value is not None and not math.isfinite(value):
                raise SettingError(f"{name} must be finite, got {value}")
        if not 0 <= self.changed <= 1:
            raise SettingError(f"changed must be from 0 to 1, got {self.changed}")
        if self.unsure is not None and not 0 < self.unsure < 1:
            raise SettingError(f"unsure must be above 0 and below 1, got {self.unsure}")
        if self.unsure is not None and self.serve is None:
            raise SettingError(
                "only a model that is served says where it is unsure: give --serve, or no --keep-unsure"
            )
        if self.frames < FEWEST_FRAMES:
            raise SettingError(
                f"frames must be at least {FEWEST_FRAMES} (one each to train, validate and test), "
                f"got {self.frames}"
            )
        if self.flip not in FLIPS:
            raise SettingError(f"flip must be one of {', '.join(FLIPS)}, got {self.flip!r}")
        if self.snapshot not in SNAPSHOTS:
            raise SettingError(f"snapshot must be one of {', '.join(SNAPSHOTS)}, got {self.snapshot!r}")

    def check_folder(self) -> None:
        """Refuse what nobody can do with pictures that somebody else has chosen, if the source is a folder.

        Raises:
            SettingError: the message names the first of them.
        """
        if not self.where.is_folder:
            return
        plain = SourceConfig(uri=self.uri, recording=self.recording)
        for name, option in _NOT_OF_FOLDERS.items():
            if getattr(self, name) != getattr(plain, name):
                raise SettingError(
                    f"{option} is about cameras and drives: pictures of the folder {self.uri} are taken as "
                    f"they are"
                )

    @property
    def is_played(self) -> bool:
        """Whether a recorded drive gives its frames as a camera would."""
        return self.loop or self.rate_hz is not None

    @property
    def where(self) -> SourceUri:
        """The same as `uri`, understood."""
        return SourceUri.parse(self.uri)
