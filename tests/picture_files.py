"""Picture files of every kind, made by hand: PNG of any depth, colour and interlacing, JPEG stored turned."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Of PNG's colour types: grey, RGB, palette, grey with alpha, RGB with alpha."""
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row, first column, step of rows, step of columns of each pass."""


def chunk(kind: bytes, body: bytes) -> bytes:
    """A PNG chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    samples_HWC: NDArray[np.integer],
    *,
    colour: int,
    bits: int,
    interlaced: bool = False,
    parts: Sequence[bytes] = (),
) -> bytes:
    """A PNG file of these samples, each below 2**bits; `parts` are chunks between header and pixels."""
    height, width, channels = samples_HWC.shape
    assert channels == CHANNELS[colour]
    passes = [samples_HWC]
    if interlaced:
        passes = [samples_HWC[row::rows, column::columns] for row, column, rows, columns in _ADAM7]
    lines = b"".join(
        b"\0" + _packed(row_WC, bits) for part_HWC in passes if part_HWC.size for row_WC in part_HWC
    )
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced))
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            *parts,
            chunk(b"IDAT", zlib.compress(lines)),
            chunk(b"IEND", b""),
        )
    )


def palette(colours: Sequence[tuple[int, int, int]]) -> bytes:
    """The chunk with a palette's colours."""
    return chunk(b"PLTE", bytes(np.array(colours, np.uint8)))


def animation(frames: int) -> bytes:
    """The chunk that makes a PNG an animated one."""
    return chunk(b"acTL", struct.pack(">II", frames, 0))


def exif(orientation: int, order: str = "<") -> bytes:
    """An Exif directory that says nothing but how the picture is stored; `order` as in `struct`."""
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    entry = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0)
    return mark + struct.pack(f"{order}IH", 8, 1) + entry + struct.pack(f"{order}I", 0)


def jpeg(image_HWC: NDArray[np.uint8], *, orientation: int | None = None, progressive: bool = False) -> bytes:
    """A JPEG file of an RGB or grey picture, nearly without loss."""
    pixels = image_HWC[:, :, ::-1] if image_HWC.ndim == 3 else image_HWC
    options = [cv2.IMWRITE_JPEG_QUALITY, 100, cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)]
    done, encoded = cv2.imencode(".jpg", np.ascontiguousarray(pixels), options)
    assert done
    data = encoded.tobytes()
    if orientation is None:
        return data
    body = b"Exif\0\0" + exif(orientation)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


def _packed(row_WC: NDArray[np.integer], bits: int) -> bytes:
    """One line's samples, most significant bit first, the last byte filled with zeros."""
    if bits == 16:
        return row_WC.astype(">u2").tobytes()
    digits = (row_WC.reshape(-1, 1) >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(digits.astype(np.uint8).ravel()).tobytes()
