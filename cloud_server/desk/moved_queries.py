"""Answers to moved queries: the vehicle says how far each feature is moved, the cloud returns loss maps.

Shapes: B frames, K moves, C channels, H W feature rows and columns, y x rows and columns of a loss map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from cloud_server.desk.seeded_queries import LossMapsOf, check_map_size, coded, maps_and_differences
from cloud_server.errors import RequestError
from protocol.codec.tensor import EncodedTensor, decode
from protocol.messages import MovedQuery, RegionSpsaPlan


def checked_moves(
    query: MovedQuery, plan: RegionSpsaPlan, shape_BCHW: tuple[int, ...]
) -> list[NDArray[np.float32]]:
    """K moves, float32[B, C, H, W] each, of a query that asks for no more than the turn's plan.

    Raises:
        RequestError, CodecError: it asks for something else, or a move is not of the features' shape.
    """
    if len(query.moves) != plan.moves:
        raise RequestError(f"this turn's queries have {plan.moves} moves, got {len(query.moves)}")
    check_map_size(query, plan, (shape_BCHW[2], shape_BCHW[3]))
    return [decode(move, expected_shape=shape_BCHW) for move in query.moves]


def coded_moved_maps(
    query: MovedQuery,
    features_BCHW: NDArray[np.float32],
    moves: Sequence[NDArray[np.float32]],
    loss_maps: LossMapsOf,
    bits: int,
) -> EncodedTensor:
    """`LossMaps.maps` of a query: the clean map, then ℓ(z + d) − ℓ(z − d) of each move d.

    Raises:
        RequestError: the map's size does not fit the network, or a loss is not finite.
    """

    def copies() -> Iterator[NDArray[np.float32]]:
        yield features_BCHW
        for move_BCHW in moves:
            yield features_BCHW + move_BCHW
            yield features_BCHW - move_BCHW

    return coded(lambda: maps_and_differences(copies(), query, loss_maps, two_sided=True), bits)
