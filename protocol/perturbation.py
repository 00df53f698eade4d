"""Perturbed features that vehicle and cloud make alike from the clean ones and a seed.

Shapes: B frames, C channels, H W feature rows and columns.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from protocol.codec.deflate import CodecError
from protocol.noise import signs

_FLOAT32 = np.dtype("<f4")


def directions(seed: int, shape_BCHW: tuple[int, ...], block: int = 1) -> npt.NDArray[np.int8]:
    """ξ int8[B, C, H, W] of ±1, drawn from `seed`: constant on squares of `block` × `block` cells, from the
    first row and column on; those at the far edges are cut where they don't fit.

    Raises:
        ValueError: a seed out of [0, 2⁶⁴).
    """
    frames, channels, height, width = shape_BCHW
    if block == 1:
        return signs(seed, (frames, channels, height, width))
    xi_BCyx = signs(seed, (frames, channels, -(-height // block), -(-width // block)))
    return xi_BCyx.repeat(block, axis=2).repeat(block, axis=3)[:, :, :height, :width]


def perturb(
    features_BCHW: npt.NDArray[np.float32],
    scale_C: npt.NDArray[np.float32],
    seed: int,
    *,
    sign: int = 1,
    block: int = 1,
) -> npt.NDArray[np.float32]:
    """z + sign · scale · ξ, float32[B, C, H, W], ξ as of `directions`; `sign` is 1 or −1.

    One rounded float32 addition an element: the same bits on every machine.

    Raises:
        ValueError: a seed out of [0, 2⁶⁴).
    """
    xi_BCHW = directions(seed, features_BCHW.shape, block)
    moved_BCHW: npt.NDArray[np.float32] = features_BCHW + np.float32(sign) * scale_C[:, None, None] * xi_BCHW
    return moved_BCHW


def pack_scale(scale_C: npt.NDArray[np.float32]) -> bytes:
    """The scale of each channel as it crosses the network: float32[C], little endian."""
    return scale_C.astype(_FLOAT32, copy=False).tobytes()


def unpack_scale(data: bytes, channels: int) -> npt.NDArray[np.float32]:
    """What `pack_scale` was given, float32[C].

    Raises:
        CodecError: another number of channels, or a scale that is negative or not finite.
    """
    expected = _FLOAT32.itemsize * channels
    if len(data) != expected:
        raise CodecError(f"perturbation scale must have {expected} bytes, got {len(data)}")
    scale_C = np.frombuffer(data, _FLOAT32).astype(np.float32)
    if not (np.isfinite(scale_C).all() and (scale_C >= 0).all()):
        raise CodecError("perturbation scale must be finite and not negative in every channel")
    return scale_C
