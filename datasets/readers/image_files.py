"""Decoding picture, label and instance files: read as they are meant, or refused with one line that says why.

A picture is a PNG or JPEG of 8 bits, grey, RGB or with a palette, interlaced or not. One that is stored
turned (Exif) is put upright, unless a label goes with it: nothing says whether the label is turned, too.
16 bits are refused, as nobody knows which of them hold the picture; so are CMYK, animations and what is
transparent. Ids are read from one grey channel alone: of fewer bits or a palette other numbers come out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.frame import DatasetError
from datasets.readers.image_header import ImageFault, ImageHeader, read_header

Pixels: TypeAlias = NDArray[np.integer[Any] | np.floating[Any]]
"""What OpenCV decodes and encodes: [H, W] or [H, W, C]."""

_AS_STORED = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
_COLOUR = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION


def decode_rgb(path: Path, *, labelled: bool = False) -> NDArray[np.uint8]:
    """Decode a picture to uint8 RGB [H, W, 3], upright.

    Args:
        path: of a PNG or JPEG file.
        labelled: whether a label goes with it, or it is one; then it has to be stored upright.

    Raises:
        DatasetError: the file is missing, unreadable, cut off or damaged, or of a kind that can't be read
            for what it shows; see the module.
    """
    data, header = _read(path)
    if header.bits > 8:
        raise DatasetError(f"{path}: {header}, expected 8; scale its range to 0 to 255 and write it again")
    if header.colour == "CMYK":
        raise DatasetError(f"{path}: {header}, expected grey or RGB; convert it")
    if labelled and header.orientation != 1:
        raise DatasetError(
            f"{path}: stored turned (Exif orientation {header.orientation}), and nothing says whether its "
            f"label is, too; write picture and label upright, without that tag"
        )
    if header.transparent:
        pixels_HWC = _decode(path, data, _AS_STORED)
        if pixels_HWC.ndim != 3 or pixels_HWC.shape[2] != 4 or pixels_HWC[:, :, 3].min() < 255:
            raise DatasetError(f"{path}: transparent in places, expected an opaque picture; remove its alpha")
    image_HWC = cv2.cvtColor(_decode(path, data, _COLOUR), cv2.COLOR_BGR2RGB)
    return _upright(image_HWC.astype(np.uint8, copy=False), header.orientation)


def decode_ids(path: Path, *, bits: tuple[int, ...] = (8,), what: str = "ids") -> NDArray[np.integer[Any]]:
    """Decode a PNG that holds a number a pixel in its one grey channel: uint8 or uint16 [H, W].

    Args:
        path: of the file.
        bits: how many a number may have, of 8 and 16.
        what: the numbers' name in the error.

    Raises:
        DatasetError: the file is missing, unreadable, cut off, damaged, or of another kind.
    """
    data, header = _read(path)
    if header.kind != "PNG" or header.colour != "grey" or header.bits not in bits or header.transparent:
        expected = " or ".join(str(number) for number in bits)
        raise DatasetError(f"{path}: expected a grey PNG of {expected} bits that holds {what}, got {header}")
    if header.orientation != 1:
        raise DatasetError(
            f"{path}: {what} stored turned (Exif orientation {header.orientation}); write them upright, "
            f"without that tag"
        )
    ids_HW: NDArray[np.integer[Any]] = _decode(path, data, _AS_STORED).astype(
        np.uint8 if header.bits == 8 else np.uint16, copy=False
    )
    return ids_HW


def decode_instances(path: Path) -> NDArray[np.int32]:
    """Decode a Cityscapes `instanceIds` file, 16-bit in one channel, to int32 [H, W].

    Raises:
        DatasetError: the file is missing, unreadable or of another kind.
    """
    return decode_ids(path, bits=(16,), what="instance ids").astype(np.int32)


def _read(path: Path) -> tuple[bytes, ImageHeader]:
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise DatasetError(f"{path}: {exc.strerror or exc}") from exc
    try:
        header = read_header(data)
    except ImageFault as exc:
        raise DatasetError(f"{path}: not a readable image ({len(data)} bytes): {exc}") from None
    if header.frames > 1:
        raise DatasetError(f"{path}: an animation of {header.frames} pictures, expected one")
    return data, header


def _decode(path: Path, data: bytes, flags: int) -> Pixels:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # an absurd size; other faults give None
        pixels = None
    if pixels is None:
        raise DatasetError(f"{path}: not a readable image ({len(data)} bytes)")
    return pixels


def _upright(image_HWC: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo Exif's orientation: 2 to 4 mirror and turn by 180°, 5 to 8 also swap rows and columns."""
    if orientation >= 5:
        image_HWC = image_HWC.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image_HWC = image_HWC[::-1]
    if orientation in (2, 3, 6, 7):
        image_HWC = image_HWC[:, ::-1]
    return np.ascontiguousarray(image_HWC)
