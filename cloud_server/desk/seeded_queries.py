"""Answers to seeded queries: the cloud unfolds the perturbations by itself and returns loss maps.

Shapes: B frames, K seeds, M copies of the frames, C channels, H W feature rows and columns, y x rows and
columns of a loss map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from cloud_server.desk.agreement import shape_text
from cloud_server.errors import RequestError
from protocol.codec.quantiser import UncodableError
from protocol.codec.tensor import EncodedTensor, encode
from protocol.errors import SettingError
from protocol.messages import LossMapPlan, MovedQuery, OwnPlan, RegionSpsaPlan, SeededQuery
from protocol.perturbation import perturb, unpack_scale

LossMapsOf = Callable[[Iterable[NDArray[np.float32]]], NDArray[np.float32]]
"""M copies of the query's features, features_BCHW each → their loss maps, copy after copy,
float32[M·B, y, x]; SettingError where the map's size does not fit the network."""


def checked_scale(
    query: SeededQuery, plan: LossMapPlan | OwnPlan, shape_BCHW: tuple[int, ...]
) -> NDArray[np.float32]:
    """How far each channel is moved, float32[C], of a query that asks for no more than the turn's plan.

    An estimator that is not ours may ask for any seeds, and any maps that divide the features.

    Raises:
        RequestError, CodecError: it asks for something else, or the scale can't be used.
    """
    _, channels, height, width = shape_BCHW
    if isinstance(plan, OwnPlan):
        rows, columns = query.map_size
        if min(query.map_size) < 1 or height % rows or width % columns:
            raise RequestError(
                f"a loss map's {shape_text(query.map_size)} cells must divide the features' {height}x{width}"
            )
        return unpack_scale(query.scale, channels)
    if len(query.seeds) != plan.seeds:
        raise RequestError(f"this turn's queries have {plan.seeds} seeds, got {len(query.seeds)}")
    if query.two_sided != plan.two_sided:
        raise RequestError(f"this turn's queries are {'two' if plan.two_sided else 'one'}-sided")
    if query.block != plan.block:
        raise RequestError(
            f"this turn's queries move squares of {plan.block} features a side, got {query.block}"
        )
    check_map_size(query, plan, (height, width))
    return unpack_scale(query.scale, channels)


def check_map_size(
    query: SeededQuery | MovedQuery, plan: LossMapPlan | RegionSpsaPlan, features_HW: tuple[int, int]
) -> None:
    """Check that it asks for maps of the size that the turn's plan says.

    Raises:
        RequestError: of another.
    """
    expected = (features_HW[0] // plan.map_stride, features_HW[1] // plan.map_stride)
    if query.map_size != expected:
        raise RequestError(
            f"this turn's loss maps are {shape_text(expected)}, got {shape_text(query.map_size)}"
        )


def coded_loss_maps(
    query: SeededQuery,
    features_BCHW: NDArray[np.float32],
    scale_C: NDArray[np.float32],
    loss_maps: LossMapsOf,
    bits: int,
) -> EncodedTensor:
    """`LossMaps.maps` of a query.

    Raises:
        RequestError: the map's size does not fit the network, or a loss is not finite.
    """
    return coded(lambda: evaluate_loss_maps(query, features_BCHW, scale_C, loss_maps), bits)


def coded(evaluate: Callable[[], NDArray[np.float32]], bits: int) -> EncodedTensor:
    """`LossMaps.maps` of the maps that `evaluate` returns.

    Raises:
        RequestError: the map's size does not fit the network, or a loss is not finite.
    """
    try:
        return encode(evaluate(), bits)
    except (SettingError, UncodableError) as error:
        raise RequestError(f"no loss maps at these features: {error}") from error


def evaluate_loss_maps(
    query: SeededQuery,
    features_BCHW: NDArray[np.float32],
    scale_C: NDArray[np.float32],
    loss_maps: LossMapsOf,
) -> NDArray[np.float32]:
    """The clean map and each seed's difference, float32[B, 1 + K, y, x].

    All copies are evaluated as one batch, and each has the maps that it would have if the vehicle had
    uploaded it.
    """

    def copies() -> Iterator[NDArray[np.float32]]:
        yield features_BCHW
        for seed in query.seeds:
            yield perturb(features_BCHW, scale_C, seed, block=query.block)
            if query.two_sided:
                yield perturb(features_BCHW, scale_C, seed, sign=-1, block=query.block)

    return maps_and_differences(copies(), query, loss_maps, two_sided=query.two_sided)


def maps_and_differences(
    copies: Iterable[NDArray[np.float32]],
    query: SeededQuery | MovedQuery,
    loss_maps: LossMapsOf,
    *,
    two_sided: bool,
) -> NDArray[np.float32]:
    """float32[B, 1 + K, y, x] from the clean features and K perturbed ones, or K pairs of both sides."""
    maps_MByx = loss_maps(copies).reshape(-1, len(query.frames), *query.map_size)
    clean_1Byx, perturbed_MByx = maps_MByx[:1], maps_MByx[1:]
    if two_sided:
        differences_KByx = perturbed_MByx[::2] - perturbed_MByx[1::2]
    else:
        differences_KByx = perturbed_MByx - clean_1Byx
    maps_BMyx: NDArray[np.float32] = np.concatenate([clean_1Byx, differences_KByx]).swapaxes(0, 1)
    return maps_BMyx
