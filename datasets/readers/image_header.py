"""What a PNG or JPEG file says of itself, and whether it is whole: decoders show half pictures in silence.

PNG: https://www.w3.org/TR/png-3/. JPEG: ITU-T T.81, annex B. Orientation: the tag 0x0112 of Exif 2.3.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from typing import Literal

Colour = Literal["grey", "RGB", "palette", "grey with alpha", "RGB with alpha", "CMYK"]

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_COLOURS: dict[int, Colour] = {
    0: "grey",
    2: "RGB",
    3: "palette",
    4: "grey with alpha",
    6: "RGB with alpha",
}
_JPEG = b"\xff\xd8"
_JPEG_COLOURS: dict[int, Colour] = {1: "grey", 3: "RGB", 4: "CMYK"}
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
"""Markers without a length: TEM and the restarts."""
_JPEG_AFTER_DATA = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
"""The marker that ends entropy-coded data, in which 0xFF is followed by 0 or a restart's number."""
_EXIF = b"Exif\0\0"
_ORIENTATION = 0x0112
_OTHERS = (
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"RIFF", "a WebP or another RIFF file"),
    (b"P5", "a PGM"),
    (b"P6", "a PPM"),
)


class ImageFault(Exception):
    """Why the bytes are no picture that we read; the caller adds the file's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """A whole file's own words."""

    kind: Literal["PNG", "JPEG"]
    colour: Colour
    bits: int
    """Of a channel, or of a palette's index."""
    orientation: int = 1
    """Exif's 1 to 8: how the stored picture is to be turned or mirrored to stand upright; 1 = not at all."""
    transparent: bool = False
    """Whether there is an alpha channel, or a colour that stands for transparent."""
    frames: int = 1
    """Above 1: animated."""

    def __str__(self) -> str:
        """`an RGB PNG of 8 bits a channel`."""
        if self.colour == "palette":
            return f"a {self.kind} with a palette (indexed colours), {self.bits} bits a pixel"
        article = "an" if self.colour.startswith("RGB") else "a"
        return f"{article} {self.colour} {self.kind} of {self.bits} bits a channel"


def read_header(data: bytes) -> ImageHeader:
    """Look through a whole file.

    Raises:
        ImageFault: it is neither PNG nor JPEG, cut off, or damaged.
    """
    try:
        if data.startswith(_PNG):
            return _read_png(data)
        if data.startswith(_JPEG):
            return _read_jpeg(data)
    except (struct.error, IndexError):
        raise ImageFault("it is cut off") from None
    other = next((name for magic, name in _OTHERS if data.startswith(magic)), None)
    raise ImageFault(f"it is {other}, expected PNG or JPEG" if other else "it is neither PNG nor JPEG")


def _read_png(data: bytes) -> ImageHeader:
    place = len(_PNG)
    bits = colour = 0
    orientation, frames, transparent = 1, 1, False
    while True:
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 8 + length
        [checksum] = struct.unpack_from(">I", data, end)
        if zlib.crc32(memoryview(data)[place + 4 : end]) != checksum:
            raise ImageFault(f"it is damaged: the checksum of its {kind.decode('latin-1')} part differs")
        if kind == b"IHDR":
            bits, colour = struct.unpack_from(">BB", data, place + 16)
        elif kind == b"tRNS":
            transparent = True
        elif kind == b"acTL":
            [frames] = struct.unpack_from(">I", data, place + 8)
        elif kind == b"eXIf":
            orientation = _orientation(data[place + 8 : end])
        elif kind == b"IEND":
            break
        place = end + 4
    if colour not in _PNG_COLOURS or not bits:
        raise ImageFault("it is damaged: a PNG without a valid header")
    return ImageHeader(
        kind="PNG",
        colour=_PNG_COLOURS[colour],
        bits=bits,
        orientation=orientation,
        transparent=transparent or colour in (4, 6),
        frames=frames,
    )


def _read_jpeg(data: bytes) -> ImageHeader:
    place = len(_JPEG)
    bits = components = 0
    orientation = 1
    while True:
        if data[place] != 0xFF:
            raise ImageFault("it is damaged: a JPEG without the marker that should come next")
        marker = data[place + 1]
        if marker == 0xFF:  # fill bytes
            place += 1
            continue
        if marker == 0xD9:
            break
        if marker in _JPEG_ALONE:
            place += 2
            continue
        [length] = struct.unpack_from(">H", data, place + 2)
        body = data[place + 4 : place + 2 + length]
        if marker in _JPEG_FRAMES:
            bits, components = body[0], body[5]
        elif marker == 0xE1 and body.startswith(_EXIF):
            orientation = _orientation(body[len(_EXIF) :])
        place += 2 + length
        if marker == 0xDA:
            found = _JPEG_AFTER_DATA.search(data, place)
            if found is None:
                raise ImageFault("it is cut off")
            place = found.start(1) - 1
    if components not in _JPEG_COLOURS:
        raise ImageFault(f"it is damaged: a JPEG of {components} channels")
    return ImageHeader(kind="JPEG", colour=_JPEG_COLOURS[components], bits=bits, orientation=orientation)


def _orientation(tiff: bytes) -> int:
    """The orientation in Exif's first directory; 1 where it says nothing valid."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        [directory] = struct.unpack_from(f"{order}I", tiff, 4)
        [count] = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(count):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, directory + 2 + 12 * entry)
            if tag == _ORIENTATION and kind == 3:
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1
