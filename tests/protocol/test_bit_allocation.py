"""Bits chosen for each channel: the bound that holds, where the bits go, and what is refused."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest
from fleet_fixtures import TinyFleet, World
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fleet.run.in_process import run_in_process
from protocol.codec.bits import check_frame_bytes, encode_within, sure_frame_bytes
from protocol.codec.quantiser import Quantiser, UncodableError
from protocol.codec.tensor import EncodedTensor, assemble, decode, encode
from protocol.messages import Query, Turn, Upload
from protocol.plans.coding import Coding
from protocol.session import topics
from protocol.session.memory import MemoryBus

ANY = (None, None, None, None)
CHOICES = (2, 3, 4, 6, 8)


def features(*shape: int, seed: int = 0, spread: float = 4.0) -> np.ndarray:
    """Normal, each channel with another standard deviation."""
    drawn = np.random.default_rng(seed).normal(size=shape)
    scale_C = spread ** np.arange(shape[1])
    return (drawn * scale_C[:, None, None]).astype(np.float32)


def bits_of(encoded: EncodedTensor) -> list[int]:
    channels = encoded.shape[1]
    return list(encoded.bits) if isinstance(encoded.bits, bytes) else [encoded.bits] * channels


def squared_error(encoded: EncodedTensor, features_BCHW: np.ndarray) -> float:
    decoded_BCHW = decode(encoded, expected_shape=features_BCHW.shape)
    return float(((decoded_BCHW - features_BCHW.astype(np.float64)) ** 2).sum())


def allocated(features_BCHW: np.ndarray, bits_C: tuple[int, ...]) -> EncodedTensor:
    """Coded with just these bits."""
    quantiser = Quantiser(features_BCHW)
    coded = [quantiser.code(bits) for bits in bits_C]
    scale_C = np.array([of_bits.scale_C[c] for c, of_bits in enumerate(coded)])
    return assemble(
        quantiser, bytes(bits_C), scale_C, [of_bits.packed_CP[c] for c, of_bits in enumerate(coded)]
    )


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=4, max_dims=4, max_side=7),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    ),
    st.integers(0, 200),
    st.sampled_from([8, 6, 4, 3, 2]),
)
def test_bound_holds_and_channels_come_back_within_half_a_step_of_their_bits(
    features_BCHW: np.ndarray, more_bytes: int, most_bits: int
) -> None:
    bound = sure_frame_bytes(features_BCHW.shape[1:]) + more_bytes
    encoded = encode_within(features_BCHW, bytes_per_frame=bound, most_bits=most_bits)
    assert encoded.payload_bytes <= bound * len(features_BCHW)
    assert max(bits_of(encoded)) <= most_bits
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(encoded), type=EncodedTensor) == encoded
    decoded_BCHW = decode(encoded, expected_shape=features_BCHW.shape)
    exact_BCHW = features_BCHW.astype(np.float64)
    range_C = exact_BCHW.max(axis=(0, 2, 3)) - exact_BCHW.min(axis=(0, 2, 3))
    levels_C = 2.0 ** np.array(bits_of(encoded)) - 1
    step_C = np.where(range_C < 4e-36, 2 * range_C, range_C / levels_C)
    rounding_C = 4 * np.finfo(np.float32).eps * np.abs(exact_BCHW).max(axis=(0, 2, 3)) + 1e-44
    assert (np.abs(decoded_BCHW - exact_BCHW) <= (0.5 * step_C + rounding_C)[:, None, None]).all()


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (1, 8, 24, 32), (8, 8, 24, 32), (2, 64, 48, 64), (3, 5, 7, 9)]
)
def test_least_bound_is_enough_for_incompressible_features(shape: tuple[int, ...]) -> None:
    """At 2 bits every byte is as likely as any other: no code makes them shorter."""
    steps_BCHW = np.random.default_rng(0).integers(0, 4, shape).astype(np.float32)
    least = sure_frame_bytes(shape[1:])
    assert encode_within(steps_BCHW, bytes_per_frame=least).payload_bytes <= least * shape[0]
    raw_bytes = 2 * steps_BCHW[0].size / 8 + 8 * shape[1]
    assert least <= 1.03 * raw_bytes + 16  # no more cautious than it has to be


@pytest.mark.parametrize("most_bits", [8, 6, 4, 3, 2])
def test_wide_bound_gives_every_channel_the_most_bits(most_bits: int) -> None:
    features_BCHW = features(2, 3, 8, 8)
    encoded = encode_within(features_BCHW, bytes_per_frame=10_000, most_bits=most_bits)
    assert encoded == encode(features_BCHW, most_bits)


def test_uniform_bits_cost_one_byte_on_the_wire() -> None:
    uniform = encode(features(2, 8, 8, 8), 8)
    mixed = msgspec.structs.replace(uniform, bits=bytes([8] * 8))
    assert len(msgspec.msgpack.encode(uniform)) + 1 + 8 == len(msgspec.msgpack.encode(mixed))


def test_bits_go_to_the_channels_whose_errors_are_large() -> None:
    features_BCHW = features(8, 6, 16, 16, spread=8.0)
    encoded = encode_within(features_BCHW, bytes_per_frame=900)
    assert isinstance(encoded.bits, bytes)
    assert list(encoded.bits) == sorted(encoded.bits)
    assert encoded.bits[0] < encoded.bits[-1]


def test_a_constant_channel_gets_the_fewest_bits() -> None:
    features_BCHW = features(8, 4, 16, 16, spread=1.0)
    features_BCHW[:, 2] = 7.25
    encoded = encode_within(features_BCHW, bytes_per_frame=600)
    assert bits_of(encoded)[2] == 2
    assert min(bits_of(encoded)[:2]) > 2
    decoded_BCHW = decode(encoded, expected_shape=ANY)
    np.testing.assert_array_equal(decoded_BCHW[:, 2], features_BCHW[:, 2])


@pytest.mark.parametrize("bytes_per_frame", [150, 200, 250, 300, 350])
def test_error_is_near_the_least_that_any_choice_of_bits_has(bytes_per_frame: int) -> None:
    """Against all 5^3 choices: what a bound of 1/8 less could have bought at best is bought."""
    features_BCHW = features(8, 3, 12, 16, seed=3)
    found = encode_within(features_BCHW, bytes_per_frame=bytes_per_frame)
    assert found.payload_bytes <= 8 * bytes_per_frame
    every = [allocated(features_BCHW, bits_C) for bits_C in itertools.product(CHOICES, repeat=3)]
    smaller = [each for each in every if each.payload_bytes <= 7 * bytes_per_frame]
    assert squared_error(found, features_BCHW) <= min(squared_error(each, features_BCHW) for each in smaller)


def test_a_wider_bound_is_used_and_lowers_the_error() -> None:
    features_BCHW = features(8, 8, 24, 32, spread=1.5)
    errors = []
    for bytes_per_frame in (1700, 2200, 2700, 3200, 3700, 4200, 4700):
        encoded = encode_within(features_BCHW, bytes_per_frame=bytes_per_frame)
        assert encoded.payload_bytes >= 0.9 * 8 * bytes_per_frame
        errors.append(squared_error(encoded, features_BCHW))
    assert errors == sorted(errors, reverse=True)


def test_choice_is_the_same_for_any_memory_layout() -> None:
    features_BCHW = features(2, 3, 12, 16)
    strided_BCHW = np.asfortranarray(features_BCHW)
    assert encode_within(features_BCHW, bytes_per_frame=300) == encode_within(
        strided_BCHW, bytes_per_frame=300
    )


def test_a_bound_that_2_bits_do_not_keep_is_refused() -> None:
    features_BCHW = np.random.default_rng(0).integers(0, 4, (2, 3, 8, 8)).astype(np.float32)
    with pytest.raises(UncodableError, match=r"into 60 bytes a frame: at 2 bits .* take \d+; \d+ is enough"):
        encode_within(features_BCHW, bytes_per_frame=60)
    with pytest.raises(ValueError, match=f"at least {sure_frame_bytes((3, 8, 8))} for features of 3x8x8"):
        check_frame_bytes(60, (3, 8, 8))


@pytest.mark.parametrize("most_bits", [32, 7, 0])
def test_bits_that_a_channel_cannot_have_are_refused(most_bits: int) -> None:
    with pytest.raises(ValueError, match=f"most bits must be one of .*, got {most_bits}"):
        encode_within(features(1, 1, 1, 1), bytes_per_frame=1000, most_bits=most_bits)


def test_features_that_are_not_finite_are_refused() -> None:
    features_BCHW = features(1, 2, 4, 4)
    features_BCHW[0, 1, 2, 3] = np.nan
    with pytest.raises(UncodableError, match="must be finite"):
        encode_within(features_BCHW, bytes_per_frame=1000)


def test_every_message_of_a_run_keeps_the_bound(
    tiny_world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A whole fleet on the bus: queries and uploads, the last batch of a split too."""
    frame_bytes = sure_frame_bytes((4, 6, 8)) + 10
    fleet = TinyFleet(tiny_world, tmp_path_factory.mktemp("bound"), coding=Coding(frame_bytes=frame_bytes))
    bus = MemoryBus()
    seen: set[str] = set()
    bits: set[int] = set()

    def check(topic: str, payload: bytes, qos: int) -> None:
        channel = topics.parse(topic).channel
        message = msgspec.msgpack.decode(payload[1:], type=channel.message_type)
        if isinstance(message, Turn):
            assert message.coding == Coding(frame_bytes=frame_bytes, bits=8)
        if isinstance(message, Query | Upload):
            seen.add(type(message).__name__)
            bits.update(bits_of(message.features))
            assert message.features.payload_bytes <= frame_bytes * len(message.frames)

    bus.record(check)
    run_in_process(
        fleet.config, [fleet.host(*fleet.config.vehicles)], tmp_path_factory.mktemp("run"), bus=bus
    )
    assert seen == {"Query", "Upload"}
    assert len(bits) > 1
