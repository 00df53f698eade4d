"""What the seeds of queries unfold to, on either side of the network."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from protocol.codec.deflate import CodecError
from protocol.noise import derive_seed
from protocol.perturbation import pack_scale, perturb, unpack_scale

PERTURBED = "26bb8b2d6d6976d0"
"""Beginning of the SHA-256 of the features perturbed below."""


def grid(shape: tuple[int, ...]) -> np.ndarray:
    """Features that need no generator: multiples of 1/8."""
    return (np.arange(np.prod(shape)) % 17 / 8).reshape(shape).astype(np.float32)


def test_perturbed_features_equal_committed_vectors() -> None:
    scale_C = np.array([0.1, 0.25, 3], np.float32)
    seed = derive_seed("vector", 2)
    plus, minus = (perturb(grid((2, 3, 4, 5)), scale_C, seed, sign=sign) for sign in (1, -1))
    assert plus.dtype == np.float32
    content = plus.astype("<f4").tobytes() + minus.astype("<f4").tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == PERTURBED


def test_perturbation_moves_each_channel_by_its_scale() -> None:
    scale_C = np.array([0.5, 0, 2], np.float32)
    features = grid((2, 3, 4, 5))
    moved = perturb(features, scale_C, 7) - features
    assert np.array_equal(np.abs(moved), np.broadcast_to(scale_C[:, None, None], moved.shape))
    assert np.array_equal(perturb(features, scale_C, 7, sign=-1) - features, -moved)


def test_scale_crosses_as_it_is() -> None:
    scale_C = np.array([0.1, 0, 3e30], np.float32)
    assert np.array_equal(unpack_scale(pack_scale(scale_C), 3), scale_C)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\0" * 8, "must have 12 bytes, got 8"),
        (np.array([1, np.nan, 1], "<f4").tobytes(), "must be finite and not negative"),
        (np.array([1, -1, 1], "<f4").tobytes(), "must be finite and not negative"),
        (np.array([1, np.inf, 1], "<f4").tobytes(), "must be finite and not negative"),
    ],
)
def test_scale_that_can_not_be_used_is_rejected(data: bytes, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        unpack_scale(data, 3)
