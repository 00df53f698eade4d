"""How many bits each channel of the features gets, under a bound on bytes a frame that holds.

Bits go where the quantisation error falls most for a coded byte more (greedy reverse water-filling: Shoham
and Gersho, "Efficient bit allocation for an arbitrary set of quantizers", 1988). What a channel will take is
estimated from the entropy of its packed bytes; what counts in the end is the size that it is coded to.
Legend: B batch, C channel, H W rows and columns, K numbers of bits to choose from, P bytes of a channel.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from protocol.codec.packing import STEPS_PER_BYTE, packed_bytes
from protocol.codec.quantiser import CodedChannels, Quantiser, UncodableError
from protocol.codec.tensor import EncodedTensor, assemble, most_coded_bytes
from protocol.errors import SettingError

FEWEST_BITS = min(STEPS_PER_BYTE)
_RANGE_BYTES = 8  # scale and zero point of a channel
_CODE_BYTES_PER_SYMBOL = 0.5  # of the description of a Huffman code
_LEAST_GROWTH = 1e-3  # bytes; more bits may be estimated to take no more


def sure_frame_bytes(feature_shape: tuple[int, int, int]) -> int:
    """The smallest bound that a frame of C, H, W features, whatever its values, is sure to hold at 2 bits."""
    channels, height, width = feature_shape
    return _RANGE_BYTES * channels + most_coded_bytes(channels * packed_bytes(height * width, FEWEST_BITS))


def check_frame_bytes(frame_bytes: int, feature_shape: tuple[int, int, int]) -> None:
    """Raise SettingError, naming the setting, where a bound is below `sure_frame_bytes`."""
    least = sure_frame_bytes(feature_shape)
    if frame_bytes < least:
        shape = "x".join(map(str, feature_shape))
        raise SettingError(
            f"coding.frame_bytes must be at least {least} for features of {shape}, {FEWEST_BITS} bits an "
            f"element, got {frame_bytes}"
        )


def encode_within(
    features_BCHW: npt.NDArray[np.float32], *, bytes_per_frame: int, most_bits: int = 8
) -> EncodedTensor:
    """Code float32 features into at most B · `bytes_per_frame` bytes (`EncodedTensor.payload_bytes`).

    Each channel gets from 2 to `most_bits` bits an element; all get `most_bits` where that fits.

    Raises SettingError for `most_bits` that a channel can't have, UncodableError for NaN, infinity or a bound
    that even 2 bits do not keep; from `sure_frame_bytes` on every tensor keeps it. Any but a non-empty tensor
    BCHW is a ValueError.
    """
    if most_bits not in STEPS_PER_BYTE:
        raise SettingError(f"most bits must be one of {tuple(STEPS_PER_BYTE)}, got {most_bits}")
    quantiser = Quantiser(features_BCHW)
    batch, channels, height, width = quantiser.shape
    bound = batch * bytes_per_frame
    generous = quantiser.code(most_bits)
    encoded = assemble(quantiser, most_bits, generous.scale_C, generous.packed_CP)
    if encoded.payload_bytes <= bound:
        return encoded
    choices = [bits for bits in sorted(STEPS_PER_BYTE) if bits <= most_bits]
    coded = [quantiser.code(bits, with_error=True) for bits in choices]
    size_KC = np.stack([_estimated_bytes(of_bits.packed_CP) for of_bits in coded])
    error_KC = np.stack([of_bits.squared_error_C for of_bits in coded])
    upgrades = _upgrades(size_KC, error_KC)
    # Estimated size after so many of the upgrades; none is 2 bits throughout.
    smallest = size_KC[0].sum() + (_RANGE_BYTES + 1) * channels
    size_after = np.cumsum([smallest, *(upgrade.bytes for upgrade in upgrades)])
    allowed, most = float(bound), len(upgrades)
    while True:
        fitting = int(np.searchsorted(size_after, allowed, side="right")) - 1
        taken = min(max(fitting, 0), most)
        choice_C = [0] * channels
        for upgrade in upgrades[:taken]:
            choice_C[upgrade.channel] = max(upgrade.choice, choice_C[upgrade.channel])
        encoded = _assemble(quantiser, [choices[k] for k in choice_C], [coded[k] for k in choice_C])
        excess = encoded.payload_bytes - bound
        if excess <= 0:
            return encoded
        if taken == 0:
            raise UncodableError(
                f"features can't be coded into {bytes_per_frame} bytes a frame: at {FEWEST_BITS} bits an "
                f"element they take {-(-encoded.payload_bytes // batch)}; "
                f"{sure_frame_bytes((channels, height, width))} is enough for any"
            )
        allowed, most = allowed - excess, taken - 1


class _Upgrade(NamedTuple):
    """One channel's step to more bits."""

    channel: int
    choice: int
    """Which number of bits, as an index of the choices."""
    bytes: float
    """Estimated growth."""
    error_per_byte: float
    """How much squared error goes away for each of them."""


def _upgrades(size_KC: npt.NDArray[np.float64], error_KC: npt.NDArray[np.float64]) -> list[_Upgrade]:
    """The steps from the first choice on, best first; those of a channel are in the order of its bits.

    They run along the lower convex hull of each channel's errors over its sizes: what lies above it is never
    the best that the bytes can buy.
    """
    upgrades = []
    for channel, (size_K, error_K) in enumerate(zip(size_KC.T, error_KC.T, strict=True)):
        choice = 0
        while choice + 1 < len(size_K):
            growth = np.maximum(size_K[choice + 1 :] - size_K[choice], _LEAST_GROWTH)
            gain = (error_K[choice] - error_K[choice + 1 :]) / growth
            best = int(gain.argmax())
            if gain[best] <= 0:
                break
            choice += 1 + best
            upgrades.append(_Upgrade(channel, choice, float(growth[best]), float(gain[best])))
    return sorted(upgrades, key=lambda upgrade: -upgrade.error_per_byte)


def _estimated_bytes(packed_CP: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """float64 (C,): the order-0 entropy of each channel's bytes, one bit a byte at least (Huffman)."""
    channels, packed = packed_CP.shape
    values = packed_CP + (np.arange(channels) << 8)[:, None]
    count_CV = np.bincount(values.reshape(-1), minlength=channels << 8).reshape(channels, 256)
    log_CV = np.log2(np.maximum(count_CV, 1))
    bits_C = packed * np.log2(packed) - (count_CV * log_CV).sum(axis=1)
    symbols_C = (count_CV > 0).sum(axis=1)
    return np.asarray(np.maximum(bits_C, packed) / 8 + _CODE_BYTES_PER_SYMBOL * symbols_C)


def _assemble(quantiser: Quantiser, bits_C: list[int], coded_C: list[CodedChannels]) -> EncodedTensor:
    """The tensor whose channels are taken from what belongs to each."""
    scale_C = np.array([coded.scale_C[channel] for channel, coded in enumerate(coded_C)])
    channels_P = [coded.packed_CP[channel] for channel, coded in enumerate(coded_C)]
    bits = bits_C[0] if len(set(bits_C)) == 1 else bytes(bits_C)
    return assemble(quantiser, bits, scale_C, channels_P)
