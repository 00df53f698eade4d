"""Features on the wire: per-channel affine quantisation to 8, 6, 4, 3 or 2 bits, then Huffman coding.

Shapes: B batch, C channel, H and W rows and columns of the feature map, N elements and P bytes of a channel.
Elements are coded channel by channel, because channels differ: each gets a Huffman code of its own.
`protocol.codec.bits` chooses the bits of each channel; `protocol.codec.packing` puts steps into bytes.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable

import msgspec
import numpy as np
import numpy.typing as npt

from protocol.codec.deflate import CodecError as CodecError
from protocol.codec.deflate import deflate, deflate_pieces, inflate
from protocol.codec.packing import STEPS_PER_BYTE, packed_bytes, unpack
from protocol.codec.quantiser import Quantiser
from protocol.errors import SettingError

BITS = (32, *STEPS_PER_BYTE)
"""Bits that an element may be coded with; 32 is float32 as it is, for a whole tensor only."""

_HUFFMAN_MOST_BYTES_PER_BYTE = 8
_FLOAT32 = np.dtype("<f4")
_MEMORY_LEVEL = 7  # 8192 symbols a Huffman code at most
_LEAST_BYTES_PER_CODE = 512  # with fewer, describing a code costs about what it saves
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class EncodedTensor(msgspec.Struct, frozen=True, array_like=True):
    """A tensor BCHW as it crosses the network; only `decode` says whether it is valid."""

    bits: int | bytes
    """One of `BITS` for all channels, or uint8[C]: one of `BITS` but 32 for each."""
    shape: tuple[int, ...]
    """(B, C, H, W)."""
    scale: bytes
    """float32[C], little endian: the value of one quantisation step; empty at 32 bits."""
    zero: bytes
    """float32[C], little endian: the value that the quantised 0 stands for; empty at 32 bits."""
    data: bytes
    """Raw deflate of float32 elements in BCHW order, or of the channels one after another, each in BHW order
    as `packing.pack` puts its elements into bytes."""

    @property
    def payload_bytes(self) -> int:
        """Bytes of everything but the few of the shape and the framing."""
        per_channel = len(self.bits) if isinstance(self.bits, bytes) else 0
        return per_channel + len(self.scale) + len(self.zero) + len(self.data)


def encode(features_BCHW: npt.NDArray[np.float32], bits: int) -> EncodedTensor:
    """Code float32 features; `decode` returns them within half a quantisation step plus float32 rounding.

    A step is 1/(2^bits − 1) of the channel's range over the batch; a range below 1e-36 counts as constant.
    Raises UncodableError for NaN or infinity, SettingError for unknown `bits`, ValueError for any but a
    non-empty tensor BCHW.
    """
    if bits not in BITS:
        raise SettingError(f"bits must be one of {BITS}, got {bits}")
    quantiser = Quantiser(features_BCHW)
    if bits == 32:
        plain = features_BCHW.astype(_FLOAT32, copy=False).tobytes()
        return EncodedTensor(
            bits, quantiser.shape, b"", b"", deflate(plain, zlib.Z_HUFFMAN_ONLY, _MEMORY_LEVEL)
        )
    coded = quantiser.code(bits)
    return assemble(quantiser, bits, coded.scale_C, coded.packed_CP)


def assemble(
    quantiser: Quantiser,
    bits: int | bytes,
    scale_C: npt.NDArray[np.float32],
    channels_P: Iterable[npt.NDArray[np.uint8]],
) -> EncodedTensor:
    """The tensor of these packed channels, one of each in order."""
    return EncodedTensor(
        bits,
        quantiser.shape,
        scale_C.astype(_FLOAT32, copy=False).tobytes(),
        quantiser.low_C.astype(_FLOAT32, copy=False).tobytes(),
        _huffman(channels_P),
    )


def decode(encoded: EncodedTensor, *, expected_shape: tuple[int | None, ...]) -> npt.NDArray[np.float32]:
    """Features float32 BCHW; `None` in `expected_shape` accepts any size on that axis.

    Raises `CodecError` with the reason for whatever does not fit; allocates no more than the declared size,
    which Huffman coding ties to the number of bytes received.
    """
    if isinstance(encoded.bits, int) and encoded.bits not in BITS:
        raise CodecError(f"tensor bits must be one of {BITS}, got {encoded.bits}")
    shape = _checked_shape(encoded.shape, expected_shape)
    if encoded.bits == 32:
        return _decode_float32(encoded, shape)
    batch, channels, height, width = shape
    scale_C = _checked_floats(encoded.scale, channels, "scale")
    zero_C = _checked_floats(encoded.zero, channels, "zero point")
    # The two above hold `channels` to the bytes received, before anything of its size is made here.
    bits_C = _checked_bits(encoded.bits, channels)
    if (scale_C < 0).any():
        raise CodecError(f"tensor scale must not be negative, got {scale_C.min()}")
    levels_C = np.left_shift(1, bits_C, dtype=np.int64) - 1
    highest_C = zero_C.astype(np.float64) + levels_C * scale_C.astype(np.float64)
    if highest_C.max() > _FLOAT32_MAX:
        raise CodecError("tensor scale and zero point exceed float32")
    elements = batch * height * width
    data = _inflate(encoded.data, sum(packed_bytes(elements, int(bits)) for bits in bits_C))
    steps_CN = _unpack_channels(np.frombuffer(data, np.uint8), bits_C, elements)
    steps_BCHW = steps_CN.reshape(channels, batch, height, width).transpose(1, 0, 2, 3)
    features_BCHW = np.multiply(steps_BCHW, scale_C[:, None, None], dtype=np.float32, order="C")
    features_BCHW += zero_C[:, None, None]
    return features_BCHW


def _decode_float32(encoded: EncodedTensor, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    if encoded.scale or encoded.zero:
        raise CodecError("a float32 tensor carries neither scale nor zero point")
    data = _inflate(encoded.data, _FLOAT32.itemsize * math.prod(shape))
    values_N = np.frombuffer(data, _FLOAT32).astype(np.float32)
    if not np.isfinite(values_N).all():
        raise CodecError("tensor holds NaN or infinity")
    return values_N.reshape(shape)


def _unpack_channels(
    packed: npt.NDArray[np.uint8], bits_C: npt.NDArray[np.uint8], elements: int
) -> npt.NDArray[np.uint8]:
    """steps_CN of the channels' bytes, one after another."""
    if (bits_C == bits_C[0]).all():
        return unpack(packed.reshape(len(bits_C), -1), int(bits_C[0]), elements)
    ends_C = np.cumsum([packed_bytes(elements, int(bits)) for bits in bits_C])
    channels_P = np.split(packed, ends_C[:-1])
    steps_CN = np.empty((len(bits_C), elements), np.uint8)
    for bits in np.unique(bits_C):
        chosen = np.flatnonzero(bits_C == bits)
        steps_CN[chosen] = unpack(np.stack([channels_P[channel] for channel in chosen]), int(bits), elements)
    return steps_CN


def _checked_shape(shape: tuple[int, ...], expected_shape: tuple[int | None, ...]) -> tuple[int, ...]:
    fits = len(shape) == len(expected_shape) == 4 and all(
        size > 0 and wanted in (None, size) for size, wanted in zip(shape, expected_shape, strict=True)
    )
    if not fits:
        wanted_text = "x".join("*" if size is None else str(size) for size in expected_shape)
        raise CodecError(f"tensor shape must be {wanted_text}, got {'x'.join(map(str, shape[:8]))}")
    return shape


def _checked_floats(data: bytes, channels: int, what: str) -> npt.NDArray[np.float32]:
    if len(data) != _FLOAT32.itemsize * channels:
        raise CodecError(f"tensor {what} must have {_FLOAT32.itemsize * channels} bytes, got {len(data)}")
    values_C = np.frombuffer(data, _FLOAT32).astype(np.float32, copy=False)
    if not np.isfinite(values_C).all():
        raise CodecError(f"tensor {what} holds NaN or infinity")
    return values_C


def _checked_bits(bits: int | bytes, channels: int) -> npt.NDArray[np.uint8]:
    if isinstance(bits, int):
        return np.full(channels, bits, np.uint8)
    if len(bits) != channels:
        raise CodecError(f"tensor bits must be one number or {channels}, got {len(bits)}")
    bits_C = np.frombuffer(bits, np.uint8)
    unknown = set(bits) - set(STEPS_PER_BYTE)
    if unknown:
        raise CodecError(f"bits of a channel must be one of {tuple(STEPS_PER_BYTE)}, got {min(unknown)}")
    return bits_C


def _inflate(data: bytes, expected_bytes: int) -> bytes:
    if expected_bytes > _HUFFMAN_MOST_BYTES_PER_BYTE * len(data):
        # A Huffman code spends at least one bit a byte: what claims more is no output of `encode`.
        raise CodecError(f"tensor data is too short: {len(data)} bytes can't hold {expected_bytes}")
    return inflate(data, expected_bytes, "tensor")


def _huffman(channels_P: Iterable[npt.NDArray[np.uint8]]) -> bytes:
    """Raw deflate, with a new code after a channel as soon as that pays."""
    pieces = [b""]
    for channel_P in channels_P:
        if len(pieces[-1]) >= _LEAST_BYTES_PER_CODE:
            pieces.append(b"")
        pieces[-1] += channel_P.tobytes()
    return deflate_pieces(pieces, zlib.Z_HUFFMAN_ONLY, _MEMORY_LEVEL)


def most_coded_bytes(packed: int) -> int:
    """Most bytes that so many packed ones take after Huffman coding, whatever they are."""
    # What no code makes shorter is stored, at 5 bytes and some bits a block; a block ends with its piece,
    # or when it holds all the symbols that it can, which is more than 4096 at `_MEMORY_LEVEL`.
    blocks = 2 + packed // _LEAST_BYTES_PER_CODE + packed // 4096
    return packed + 6 * blocks
