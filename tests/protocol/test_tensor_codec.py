"""Features on the wire: what comes back, how close it is, and what is refused."""

from __future__ import annotations

import zlib
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocol.codec import tensor as tensor_codec
from protocol.codec.quantiser import UncodableError
from protocol.codec.tensor import BITS, CodecError, EncodedTensor

ANY = (None, None, None, None)
QUANTISED = (8, 6, 4, 3, 2)


def features(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def deflated(data: bytes) -> bytes:
    coder = zlib.compressobj(wbits=-15)
    return coder.compress(data) + coder.flush()


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=4, max_dims=4, max_side=6),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    ),
    st.sampled_from(QUANTISED),
)
def test_quantised_round_trip_is_within_half_a_step(features_BCHW: np.ndarray, bits: int) -> None:
    decoded_BCHW = tensor_codec.decode(
        tensor_codec.encode(features_BCHW, bits), expected_shape=features_BCHW.shape
    )
    assert decoded_BCHW.dtype == np.float32
    exact_BCHW = features_BCHW.astype(np.float64)
    range_C = exact_BCHW.max(axis=(0, 2, 3)) - exact_BCHW.min(axis=(0, 2, 3))
    step_C = np.where(range_C < 4e-36, 2 * range_C, range_C / (2**bits - 1))
    rounding_C = 4 * np.finfo(np.float32).eps * np.abs(exact_BCHW).max(axis=(0, 2, 3)) + 1e-44
    bound_C = 0.5 * step_C + rounding_C
    assert (np.abs(decoded_BCHW - exact_BCHW) <= bound_C[:, None, None]).all()


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=4, max_dims=4, max_side=6),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    )
)
def test_float32_round_trip_is_exact(features_BCHW: np.ndarray) -> None:
    encoded = tensor_codec.encode(features_BCHW, 32)
    decoded_BCHW = tensor_codec.decode(encoded, expected_shape=features_BCHW.shape)
    np.testing.assert_array_equal(decoded_BCHW, features_BCHW)


@pytest.mark.parametrize("bits", QUANTISED)
def test_quantisation_equals_reference(bits: int) -> None:
    features_BCHW = features(3, 5, 7, 9)
    expected_BCHW = np.empty_like(features_BCHW)
    for channel in range(5):
        plane = features_BCHW[:, channel]
        low, high = plane.min(), plane.max()
        scale = np.float32((high - low) / np.float32(2**bits - 1))
        expected_BCHW[:, channel] = np.round((plane - low) / scale) * scale + low
    decoded_BCHW = tensor_codec.decode(tensor_codec.encode(features_BCHW, bits), expected_shape=ANY)
    np.testing.assert_array_equal(decoded_BCHW, expected_BCHW)


@pytest.mark.parametrize("bits", BITS)
def test_encoding_is_the_same_for_any_memory_layout(bits: int) -> None:
    features_BCHW = features(2, 3, 5, 7)
    strided_BCHW = np.asfortranarray(features_BCHW)
    assert tensor_codec.encode(features_BCHW, bits) == tensor_codec.encode(strided_BCHW, bits)


@pytest.mark.parametrize("bits", BITS)
def test_tensor_survives_messagepack(bits: int) -> None:
    encoded = tensor_codec.encode(features(1, 2, 3, 4), bits)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(encoded), type=EncodedTensor) == encoded


@pytest.mark.parametrize("bits", QUANTISED)
def test_constant_channel_comes_back_exactly(bits: int) -> None:
    features_BCHW = np.full((2, 2, 3, 3), 0.1, np.float32)
    features_BCHW[:, 1] = -7.25
    decoded_BCHW = tensor_codec.decode(tensor_codec.encode(features_BCHW, bits), expected_shape=ANY)
    np.testing.assert_array_equal(decoded_BCHW, features_BCHW)


@pytest.mark.parametrize("bits", BITS)
def test_largest_values_decode(bits: int) -> None:
    features_BCHW = np.array([-1e38, 0, 1e38, 1], np.float32).reshape(1, 1, 2, 2)
    decoded_BCHW = tensor_codec.decode(tensor_codec.encode(features_BCHW, bits), expected_shape=ANY)
    assert np.isfinite(decoded_BCHW).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2e38])
def test_encode_refuses_what_is_not_finite_or_too_large(value: float, bits: int) -> None:
    features_BCHW = features(2, 2, 2, 2)
    features_BCHW[1, 0, 1, 0] = value
    with pytest.raises(UncodableError, match="must be finite"):
        tensor_codec.encode(features_BCHW, bits)


@pytest.mark.parametrize(
    "features_BCHW",
    [np.zeros((1, 2, 3), np.float32), np.zeros((1, 1, 1, 1)), np.zeros((0, 1, 1, 1), np.float32)],
)
def test_encode_refuses_another_rank_dtype_or_nothing(features_BCHW: np.ndarray) -> None:
    with pytest.raises(ValueError, match="non-empty float32 tensor BCHW, got"):
        tensor_codec.encode(features_BCHW, 8)


def test_encode_refuses_unknown_bits() -> None:
    with pytest.raises(ValueError, match="bits must be one of"):
        tensor_codec.encode(features(1, 1, 1, 1), 5)


def broken(bits: int, /, **changes: object) -> EncodedTensor:
    return msgspec.structs.replace(tensor_codec.encode(features(2, 3, 5, 7), bits), **changes)


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (broken(8, bits=7), "bits must be one of"),
        (broken(8, shape=(2, 3, 5)), "shape must be"),
        (broken(8, shape=(2, 3, 5, 7, 1)), "shape must be"),
        (broken(8, shape=(2, 3, 5, 8)), "shape must be"),
        (broken(8, shape=(0, 3, 5, 7)), "shape must be"),
        (broken(8, shape=(-2, 3, 5, 7)), "shape must be"),
        (broken(8, shape=(1, 3, 5, 7)), "too long"),
        (broken(8, shape=(3, 3, 5, 7)), "truncated"),
        (broken(8, shape=(2**60, 3, 5, 7)), "too short"),
        (broken(8, scale=b""), "scale must have 12 bytes"),
        (broken(8, zero=bytes(13)), "zero point must have 12 bytes"),
        (broken(8, scale=np.array([1, -1, 1], "<f4").tobytes()), "must not be negative"),
        (broken(8, scale=np.array([1, np.nan, 1], "<f4").tobytes()), "NaN or infinity"),
        (broken(8, zero=np.array([np.inf, 0, 0], "<f4").tobytes()), "NaN or infinity"),
        (broken(8, scale=np.array([1e37, 0, 0], "<f4").tobytes()), "exceed float32"),
        (broken(8, data=b""), "too short"),
        (broken(8, data=bytes(300)), "corrupt|truncated"),
        (broken(8, data=broken(8).data + b"x"), "1 bytes after its end"),
        (broken(8, data=broken(8).data[:-20]), "truncated"),
        (broken(6, data=deflated(bytes([64]) * 210)), "too short"),
        (broken(6, data=deflated(bytes(range(210)))), "must lie in 0..63"),
        (broken(3, data=deflated(bytes([64]) * 105)), "too short"),
        (broken(3, data=deflated(bytes(range(105)))), "must lie in 0..63"),
        (broken(3, shape=(1, 3, 5, 7)), "too long"),
        (broken(2, shape=(3, 3, 5, 7)), "truncated"),
        (broken(2, shape=(2**60, 3, 5, 7)), "too short"),
        (broken(2, scale=np.array([1e38, 1e38, 2e38], "<f4").tobytes()), "exceed float32"),
        (broken(8, bits=b""), "bits must be one number or 3, got 0"),
        (broken(8, bits=bytes([8, 8, 8, 8])), "bits must be one number or 3, got 4"),
        (broken(8, bits=bytes([8, 5, 8])), "bits of a channel must be one of .*, got 5"),
        (broken(8, bits=bytes([8, 32, 8])), "bits of a channel must be one of .*, got 32"),
        (broken(8, bits=bytes([8, 0, 8])), "bits of a channel must be one of .*, got 0"),
        (broken(8, bits=bytes([8, 8, 2])), "too long"),
        (broken(2, bits=bytes([2, 2, 3])), "truncated"),
        (broken(2, bits=bytes([2, 2, 8])), "truncated"),
        (broken(8, bits=bytes([8, 8, 6]), data=deflated(bytes(140) + bytes(range(70)))), "must lie in 0..63"),
        (broken(8, bits=bytes([8, 8, 4]), shape=(2**60, 3, 5, 7)), "too short"),
        (broken(32, scale=bytes(12)), "neither scale nor zero point"),
        (broken(32, data=deflated(np.r_[features(209), np.nan].astype("<f4").tobytes())), "NaN or infinity"),
    ],
)
def test_decode_refuses_what_does_not_fit(encoded: EncodedTensor, reason: str) -> None:
    with pytest.raises(CodecError, match=reason) as caught:
        tensor_codec.decode(encoded, expected_shape=(None, 3, 5, 7))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("bits", "data"), [(4, b"\x00\x01"), (3, b"\x00\x01"), (2, b"\x01"), (bytes([2]), b"\x03")]
)
def test_decode_refuses_a_value_in_the_padding(bits: int | bytes, data: bytes) -> None:
    encoded = tensor_codec.encode(features(1, 1, 1, 3), 4)
    with pytest.raises(CodecError, match="padding"):
        tensor_codec.decode(
            msgspec.structs.replace(encoded, bits=bits, data=deflated(data)), expected_shape=(1, 1, 1, 3)
        )


@pytest.mark.parametrize(("bits", "packed"), [(4, [0x12, 0x30]), (3, [0o12, 0o30]), (2, [0b01_10_11_00])])
def test_elements_share_bytes_as_documented(bits: int, packed: list[int]) -> None:
    """Steps 1, 2, 3 of a channel that reaches from 0 to the highest level."""
    level = (1 << bits) - 1
    features_BCHW = np.array([1, 2, 3, 0, level, 0], np.float32).reshape(1, 1, 1, 6)
    data = zlib.decompress(tensor_codec.encode(features_BCHW, bits).data, -15)
    assert list(data)[: len(packed)] == packed


@pytest.mark.parametrize("bits", QUANTISED)
def test_channels_get_huffman_codes_of_their_own(bits: int) -> None:
    """Channels that differ take together no more than each takes by itself."""
    features_BCHW = features(8, 8, 24, 32) ** np.arange(1, 9)[:, None, None]
    features_BCHW = features_BCHW.astype(np.float32)
    alone = sum(tensor_codec.encode(features_BCHW[:, c : c + 1], bits).payload_bytes for c in range(8))
    assert tensor_codec.encode(features_BCHW, bits).payload_bytes <= 1.01 * alone


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_smooth_features_of_few_bits_code_below_their_raw_size(bits: int) -> None:
    frame_B, y_H, x_W = np.arange(8), np.arange(24) / 32, np.arange(32) / 32
    phase_BHW = frame_B[:, None, None] + y_H[:, None] + x_W
    features_BCHW = np.stack([np.sin(k * phase_BHW) for k in range(1, 9)], axis=1).astype(np.float32)
    raw_bytes = features_BCHW.size * bits / 8
    assert tensor_codec.encode(features_BCHW, bits).payload_bytes < 0.7 * raw_bytes


def test_decode_stops_a_decompression_bomb() -> None:
    bomb = deflated(bytes(50_000_000))
    shape = (1, 1, 1000, 300)
    encoded = EncodedTensor(8, shape, bytes(4), bytes(4), bomb)
    with pytest.raises(CodecError, match="too long: more than 300000 bytes"):
        tensor_codec.decode(encoded, expected_shape=shape)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.sampled_from(BITS), st.binary(min_size=3, max_size=3)),
    st.binary(max_size=400),
    st.integers(0, 400),
    st.integers(0, 255),
)
def test_decode_of_damaged_data_raises_nothing_else(
    bits: int | bytes, junk: bytes, position: int, flip: int
) -> None:
    encoded = tensor_codec.encode(features(2, 3, 5, 7), bits if isinstance(bits, int) else 2)
    encoded = msgspec.structs.replace(encoded, bits=bits)
    damaged = bytearray(encoded.data)
    damaged[position % len(damaged)] ^= flip
    for data in (junk, bytes(damaged)):
        try:
            decoded_BCHW = tensor_codec.decode(
                msgspec.structs.replace(encoded, data=data), expected_shape=(2, 3, 5, 7)
            )
        except CodecError:
            continue
        assert decoded_BCHW.shape == (2, 3, 5, 7) and np.isfinite(decoded_BCHW).all()


@pytest.mark.parametrize(("bits", "limit"), [(8, 0.95), (6, 0.70), (4, 0.42), (3, 0.30), (2, 0.19)])
def test_features_of_real_frames_cost_less_than_their_bits(
    camvid_root: Path, bits: int, limit: float
) -> None:
    files = sorted((camvid_root / "train").glob("*.png"))[::50]
    rng = np.random.default_rng(0)
    kernels = rng.normal(size=(8, 3, 16, 16)).astype(np.float32)
    features_BCHW = np.empty((len(files), 8, 24, 32), np.float32)
    for i, file in enumerate(files):
        image_HWC = cv2.resize(cv2.imread(str(file)), (256, 192), interpolation=cv2.INTER_AREA) / np.float32(
            255
        )
        for channel in range(8):
            response = sum(cv2.filter2D(image_HWC[..., c], -1, kernels[channel, c]) for c in range(3))
            features_BCHW[i, channel] = np.asarray(response)[4::8, 4::8]
    encoded = tensor_codec.encode(features_BCHW, bits)
    assert encoded.payload_bytes / features_BCHW.size < limit
