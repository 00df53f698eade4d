"""Label coding: lossless for every label there can be, and safe for every byte string there can be."""

from __future__ import annotations

import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocol.codec.labels import DIGEST_BYTES, CodecError, content_hash, decode_label, encode_label

HASH = "6c14b5c1dcafff56"
LABELS = hnp.arrays(
    np.uint8,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=24),
    elements=st.sampled_from([0, 1, 2, 10, 253, 255]),
)


def deflated(data: bytes) -> bytes:
    coder = zlib.compressobj(wbits=-15)
    return coder.compress(data) + coder.flush()


@given(LABELS)
def test_label_round_trip_is_exact(label_HW: np.ndarray) -> None:
    height, width = label_HW.shape
    decoded_HW = decode_label(encode_label(label_HW), height=height, width=width, num_classes=254)
    assert decoded_HW.dtype == np.uint8
    np.testing.assert_array_equal(decoded_HW, label_HW)


def test_real_labels_round_trip_in_less_than_png_takes(camvid_root: Path) -> None:
    files = sorted((camvid_root / "trainannot").glob("*.png"))[::40]
    coded_bytes = png_bytes = 0
    for file in files:
        label_HW = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        label_HW = cv2.resize(label_HW, (256, 192), interpolation=cv2.INTER_NEAREST)
        label_HW[label_HW == 11] = 255
        data = encode_label(label_HW)
        decoded_HW = decode_label(data, height=192, width=256, num_classes=11)
        np.testing.assert_array_equal(decoded_HW, label_HW)
        coded_bytes += len(data)
        png_bytes += len(cv2.imencode(".png", label_HW, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1])
    assert coded_bytes < 0.8 * png_bytes


@pytest.mark.parametrize(
    ("label_HW", "reason"),
    [
        (np.zeros((2, 2), np.int64), "uint8 image HW, got int64"),
        (np.zeros((2, 2, 1), np.uint8), "uint8 image HW"),
        (np.zeros((0, 2), np.uint8), "non-empty"),
        (np.full((2, 2), 254, np.uint8), "got 254"),
    ],
)
def test_encode_refuses_what_is_no_label(label_HW: np.ndarray, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        encode_label(label_HW)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (b"\xff" * 40, "corrupt"),
        (deflated(bytes(19)), "truncated: 19 of 20"),
        (deflated(bytes(21)), "too long"),
        (deflated(bytes(100_000_000)), "too long"),
        (deflated(bytes(20)) + b"?", "after its end"),
        (deflated(bytes([11]) * 20), "below 11, or 255 for void, got 11"),
        (deflated(bytes([254]) * 20), "below 11, or 255 for void, got 254"),
    ],
)
def test_decode_refuses_what_does_not_fit(data: bytes, reason: str) -> None:
    with pytest.raises(CodecError, match=reason):
        decode_label(data, height=4, width=5, num_classes=11)


def test_decode_refuses_the_marker_even_when_every_id_is_a_class() -> None:
    with pytest.raises(CodecError, match="got 254"):
        decode_label(deflated(bytes([254]) * 20), height=4, width=5, num_classes=255)


def test_decode_refuses_a_size_of_nothing() -> None:
    with pytest.raises(CodecError, match="size must be positive, got 5x0"):
        decode_label(deflated(b""), height=0, width=5, num_classes=11)


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_decode_of_random_bytes_raises_nothing_else(data: bytes) -> None:
    try:
        label_HW = decode_label(data, height=4, width=5, num_classes=11)
    except CodecError:
        return
    assert label_HW.shape == (4, 5) and (label_HW[label_HW != 255] < 11).all()


def test_content_hash_depends_on_content_and_size_alone() -> None:
    label_HW = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert content_hash(label_HW).hex() == HASH
    assert len(content_hash(label_HW)) == DIGEST_BYTES
    assert content_hash(np.asfortranarray(label_HW)) == content_hash(label_HW)
    assert content_hash(label_HW.reshape(4, 3)) != content_hash(label_HW)
    label_HW[0, 0] = 255
    assert content_hash(label_HW).hex() != HASH
