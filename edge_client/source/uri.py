"""What a source's URI names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from protocol.errors import SettingError

EXPECTED = (
    "csi://0, v4l2:///dev/video0, rtsp://HOST/PATH, file://drive.mp4, or file:///FOLDER with pictures that "
    "come in"
)


class Kind(Enum):
    """What frames are read by."""

    CSI = "csi"
    """A Jetson's camera connector, by number."""
    V4L2 = "v4l2"
    """A video device of Linux, by path."""
    RTSP = "rtsp"
    """A camera in the network, by URL."""
    FILE = "file"
    """A recorded drive, or a folder of pictures."""


@dataclass(frozen=True)
class SourceUri:
    """A source, and how it is called where others may read it."""

    kind: Kind
    where: str
    """Number, path or URL."""
    shown: str
    """Without user and password."""

    @staticmethod
    def parse(text: str) -> SourceUri:
        """Understand a URI; what has no scheme is a path.

        Raises:
            SettingError: it names no source; the message says what does.
        """
        scheme, separator, rest = text.partition("://")
        if not separator:
            scheme, rest = "file", text
        if scheme == "csi" and re.fullmatch(r"\d{1,2}", rest):
            return SourceUri(Kind.CSI, str(int(rest)), text)
        if scheme == "v4l2" and rest.startswith("/"):
            return SourceUri(Kind.V4L2, rest, text)
        if scheme == "file" and rest:
            return SourceUri(Kind.FILE, unquote(rest) if separator else rest, text)
        if scheme in ("rtsp", "rtsps"):
            shown = _without_user(text)
            if shown is not None:
                return SourceUri(Kind.RTSP, text, shown)
        # A URL that is not understood may hold a password all the same.
        raise SettingError(f"no source {scheme}://… that is known: expected {EXPECTED}")

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of pictures, as far as can be seen now."""
        return self.kind is Kind.FILE and Path(self.where).is_dir()


def _without_user(url: str) -> str | None:
    """The URL without user and password; None: it names no host, or a port that is none."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if not parts.hostname:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return urlunsplit((parts.scheme, host if port is None else f"{host}:{port}", parts.path, parts.query, ""))
