"""Seeded noise: what crosses the network as a seed must unfold to the same bits everywhere, forever."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import noise

SEEDS = st.integers(0, 2**64 - 1)

RAW_0 = ["02f4ba6408e4d89b", "3dd62b0b9ca8c5b2", "1c8667a55d902e79", "907d7a052fd5b4dc"]
RAW_MAX = ["3c2521c58dde5bfb", "b7a1ad5dae1306d7", "6942eae9fd2feb84", "b7552e878d1c26fe"]
DERIVED_NOTHING = "78b2025985435d7a"
DERIVED_BATCH = "25088e06df6db34d"
SIGNS = "01010101010101010101ffffff010101"
SEGMENTED = "ffe307bf0c5d3f3f1c2d19bf0aa757bfa64b763f"
UNIFORM = "f8212c43d7afdf3f25135ce1f4aaed3fc9ee6dc52ad1e33f"
PERMUTATION = [6, 0, 5, 2, 4, 3, 7, 1]
DIGEST = "a636ec859b601fdf66fd7000c6c70ba783ffe3656b27518f6feb7ffff72dd92b"


def test_raw_equals_committed_vectors() -> None:
    assert [f"{word:016x}" for word in noise.raw(0, 4)] == RAW_0
    assert [f"{word:016x}" for word in noise.raw(2**64 - 1, 4)] == RAW_MAX


def philox_reference(counter: int, key: int) -> list[int]:
    """Philox-4x64-10 as published (Salmon et al., 2011), in Python integers."""
    mask = 2**64 - 1
    c, k = [counter, 0, 0, 0], [key, 0]
    for _ in range(10):
        product_0, product_2 = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [
            (product_2 >> 64) ^ c[1] ^ k[0],
            product_2 & mask,
            (product_0 >> 64) ^ c[3] ^ k[1],
            product_0 & mask,
        ]
        k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
    return c


@pytest.mark.parametrize("seed", [0, 1, 0x0123456789ABCDEF, 2**64 - 1])
def test_raw_equals_the_published_generator(seed: int) -> None:
    expected = [word for counter in range(1, 9) for word in philox_reference(counter, seed)]
    assert noise.raw(seed, 32).tolist() == expected


def test_derive_seed_equals_committed_vectors() -> None:
    assert f"{noise.derive_seed():016x}" == DERIVED_NOTHING
    assert f"{noise.derive_seed(0, 'batch', 3, 141):016x}" == DERIVED_BATCH


def test_distributions_equal_committed_vectors() -> None:
    seed = noise.derive_seed("vector", 1)
    assert noise.signs(seed, (16,)).tobytes().hex() == SIGNS
    assert noise.segmented_uniform(seed, 5).astype("<f4").tobytes().hex() == SEGMENTED
    assert noise.uniform(seed, 3).astype("<f8").tobytes().hex() == UNIFORM
    assert noise.permutation(seed, 8).tolist() == PERMUTATION
    everything = noise.signs(seed, (3, 5, 7, 11)).tobytes() + noise.segmented_uniform(seed, 9999).tobytes()
    assert hashlib.sha256(everything).hexdigest() == DIGEST


@given(SEEDS, st.integers(0, 200), st.integers(0, 200))
def test_shorter_noise_is_a_prefix_of_longer(seed: int, first: int, second: int) -> None:
    short, long = sorted((first, second))
    np.testing.assert_array_equal(noise.raw(seed, short), noise.raw(seed, long)[:short])
    np.testing.assert_array_equal(noise.signs(seed, (short,)), noise.signs(seed, (long,))[:short])
    np.testing.assert_array_equal(noise.uniform(seed, short), noise.uniform(seed, long)[:short])
    np.testing.assert_array_equal(
        noise.segmented_uniform(seed, short), noise.segmented_uniform(seed, long)[:short]
    )


@given(SEEDS, st.integers(0, 300))
def test_permutation_holds_every_index_once(seed: int, n: int) -> None:
    np.testing.assert_array_equal(np.sort(noise.permutation(seed, n)), np.arange(n))


def test_distributions_have_their_range_and_moments() -> None:
    n = 200_000
    signs = noise.signs(1, (n,))
    assert signs.dtype == np.int8 and set(np.unique(signs)) == {-1, 1}
    assert abs(signs.mean()) < 5 / np.sqrt(n)
    uniform = noise.uniform(2, n)
    assert uniform.dtype == np.float64 and uniform.min() >= 0 and uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 5 * np.sqrt(1 / 12 / n)
    segmented = noise.segmented_uniform(3, n)
    magnitude = np.abs(segmented)
    assert segmented.dtype == np.float32 and magnitude.min() >= 0.5 and magnitude.max() < 1
    assert abs(magnitude.mean() - 0.75) < 5 * np.sqrt(1 / 48 / n)
    assert abs(np.sign(segmented).mean()) < 5 / np.sqrt(n)
    # An estimate divides by u elementwise: sign and magnitude must not be related.
    assert abs(np.corrcoef(np.sign(segmented), magnitude)[0, 1]) < 5 / np.sqrt(n)


def test_derive_seed_tells_apart_order_type_and_boundaries() -> None:
    parts: list[tuple[int | str, ...]] = [
        (), ("",), ("", ""), (0,), ("0",), (1, 2), (2, 1), ("1", 2), (12,), ("ab", "c"), ("a", "bc"),
               ("abc",), (-1,), (2**64,), (2**64 - 1,), (2**200,),
    ]  # fmt: skip
    seeds = [noise.derive_seed(*part) for part in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**64 for seed in seeds)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_raw_refuses_a_seed_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match=r"seed must lie in \[0, 2\*\*64\)"):
        noise.raw(seed, 1)
