"""Lossless coding of label images: what equals the pixel above becomes one marker, then deflate.

A CamVid label of 256x192 takes 1.4 KB (0.23 bits a pixel; its PNG 2.0 KB) and 0.15 ms.
"""

from __future__ import annotations

import hashlib
import zlib

import numpy as np
import numpy.typing as npt

from protocol.codec.deflate import CodecError as CodecError
from protocol.codec.deflate import deflate, inflate

VOID = 255
_SAME_AS_ABOVE = 254
DIGEST_BYTES = 8


def encode_label(label_HW: npt.NDArray[np.uint8]) -> bytes:
    """Code a uint8 label of class ids 0–253 and 255 for void.

    Raises ValueError for another dtype or rank, an empty label, or the id 254.
    """
    _check_label(label_HW)
    if (label_HW == _SAME_AS_ABOVE).any():
        raise ValueError(
            f"label ids must be below {_SAME_AS_ABOVE}, or {VOID} for void, got {_SAME_AS_ABOVE}"
        )
    coded_HW = label_HW.copy()
    coded_HW[1:][label_HW[1:] == label_HW[:-1]] = _SAME_AS_ABOVE
    return deflate(coded_HW.tobytes(), zlib.Z_RLE)


def decode_label(data: bytes, *, height: int, width: int, num_classes: int) -> npt.NDArray[np.uint8]:
    """The label uint8[height, width]; never allocates more than its size allows.

    Raises `CodecError` for corrupt data, another size, or an id that is neither below `num_classes` nor void.
    """
    if height < 1 or width < 1:
        raise CodecError(f"label size must be positive, got {width}x{height}")
    label_HW = np.frombuffer(inflate(data, height * width, "label"), np.uint8).reshape(height, width).copy()
    for row in range(1, height):
        np.copyto(label_HW[row], label_HW[row - 1], where=label_HW[row] == _SAME_AS_ABOVE)
    # A marker without a meaning, in the first row and below it, is still there and fails as an unknown id.
    present = np.flatnonzero(np.bincount(label_HW.reshape(-1), minlength=256))
    unknown = present[(present >= min(num_classes, _SAME_AS_ABOVE)) & (present != VOID)]
    if unknown.size:
        raise CodecError(f"label ids must be below {num_classes}, or {VOID} for void, got {unknown[0]}")
    return label_HW


def content_hash(label_HW: npt.NDArray[np.uint8]) -> bytes:
    """8 bytes that identify a uint8 label by its size and content (BLAKE2b)."""
    _check_label(label_HW)
    height, width = label_HW.shape
    digest = hashlib.blake2b(
        height.to_bytes(4, "little") + width.to_bytes(4, "little"), digest_size=DIGEST_BYTES
    )
    digest.update(label_HW.tobytes())
    return digest.digest()


def _check_label(label_HW: npt.NDArray[np.uint8]) -> None:
    if label_HW.ndim != 2 or label_HW.dtype != np.uint8 or label_HW.size == 0:
        raise ValueError(f"a label must be a non-empty uint8 image HW, got {label_HW.dtype} {label_HW.shape}")
