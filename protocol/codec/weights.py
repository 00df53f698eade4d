"""Network weights as they travel and as they lie in a file: named float32 tensors, nothing to unpickle."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from protocol.codec.plausible import implausible
from protocol.errors import WireError

_WIRE_TYPE = np.dtype("<f4")

Shapes = Mapping[str, tuple[int, ...]]
WeightArrays = dict[str, NDArray[np.float32]]


class WeightTensor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One tensor: MessagePack array `[name, shape, data]`."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    shape: Annotated[tuple[Annotated[int, Meta(ge=0, le=2**31 - 1)], ...], Meta(max_length=8)]
    data: bytes
    """float32, little endian, C order."""


class WeightsError(WireError):
    """Weights that are not those of the network at hand; the message names the first tensor that differs."""


def pack(weights: Mapping[str, NDArray[np.float32]]) -> tuple[WeightTensor, ...]:
    """Make `weights` ready to be sent, in their order."""
    return tuple(
        WeightTensor(name, array.shape, np.ascontiguousarray(array, _WIRE_TYPE).tobytes())
        for name, array in weights.items()
    )


def unpack(tensors: Iterable[WeightTensor], expected: Shapes) -> WeightArrays:
    """The arrays by name, in the order of `expected`; read-only views of what was received.

    Raises:
        WeightsError: a tensor is missing, unknown, there twice, of another shape or size, or holds
            implausible numbers.
    """
    found: WeightArrays = {}
    for tensor in tensors:
        name = tensor.name
        if name not in expected:
            raise WeightsError(f"weights hold {name!r}, which this network has not or does not exchange")
        if name in found:
            raise WeightsError(f"weights hold {name!r} twice")
        shape = tuple(expected[name])
        if tensor.shape != shape:
            raise WeightsError(f"weights {name!r} have shape {tensor.shape}, expected {shape}")
        size = math.prod(shape) * _WIRE_TYPE.itemsize
        if len(tensor.data) != size:
            raise WeightsError(f"weights {name!r} have {len(tensor.data)} bytes, expected {size}")
        array = np.frombuffer(tensor.data, _WIRE_TYPE).reshape(shape).astype(np.float32, copy=False)
        if wrong := implausible(array):
            raise WeightsError(f"weights {name!r} hold {wrong}")
        found[name] = array
    missing = [name for name in expected if name not in found]
    if missing:
        raise WeightsError(f"weights lack {missing[0]!r} ({len(missing)} of {len(expected)} tensors missing)")
    return {name: found[name] for name in expected}
