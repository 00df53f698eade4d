"""Quantisation steps to bytes and back: several steps of few bits share a byte.

Legend: C channel, N elements of a channel, P bytes of a channel.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from protocol.codec.deflate import CodecError

STEPS_PER_BYTE = {8: 1, 6: 1, 4: 2, 3: 2, 2: 4}
"""By bits an element."""


def packed_bytes(elements: int, bits: int) -> int:
    """Bytes of a channel of so many elements."""
    return -(-elements // STEPS_PER_BYTE[bits])


def pack(steps_CN: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """uint8 (C, P): of the elements that share a byte the first in the highest bits, zeros at the end.

    Neighbours share a byte, so that a Huffman code also sees what they have in common, and can spend less
    than one bit on an element.
    """
    count = STEPS_PER_BYTE[bits]
    if count == 1:
        return steps_CN
    missing = -steps_CN.shape[1] % count
    if missing:
        steps_CN = np.pad(steps_CN, ((0, 0), (0, missing)))
    packed_CP = steps_CN[:, 0::count]
    for place in range(1, count):
        packed_CP = (packed_CP << np.uint8(bits)) | steps_CN[:, place::count]
    return packed_CP


def unpack(packed_CP: npt.NDArray[np.uint8], bits: int, elements: int) -> npt.NDArray[np.uint8]:
    """The uint8 (C, N) that `pack` made `packed_CP` of, N being `elements`.

    Raises CodecError for bytes that `pack` does not write.
    """
    count = STEPS_PER_BYTE[bits]
    largest = (1 << (count * bits)) - 1
    if largest < 255 and packed_CP.max() > largest:
        raise CodecError(f"tensor data must lie in 0..{largest} at {bits} bits, got {packed_CP.max()}")
    if count == 1:
        return packed_CP
    steps_CN = np.empty((packed_CP.shape[0], count * packed_CP.shape[1]), np.uint8)
    for place in range(count):
        shift = np.uint8(bits * (count - 1 - place))
        steps_CN[:, place::count] = (packed_CP >> shift) & np.uint8((1 << bits) - 1)
    if steps_CN[:, elements:].any():
        raise CodecError("tensor data has a value in the padding")
    return steps_CN[:, :elements]
